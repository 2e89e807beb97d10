# Perl's own calls for System V semaphores and queues, with the constants of IPC::SysV, and flock.
# Usage: sysv.pl KEY FILE TIMES: adds TIMES to the number in FILE, each time under both locks.
use strict;
use warnings;
use Fcntl qw(:flock :seek);
use IPC::SysV qw(IPC_CREAT IPC_NOWAIT IPC_RMID IPC_STAT SEM_UNDO SETVAL GETVAL S_IRUSR S_IWUSR);
use Errno;

my ($key, $path, $times) = @ARGV;
$key = oct $key;
my $id = semget($key, 1, IPC_CREAT | 0666) // die "semget: $!";
my $queue = msgget($key, IPC_CREAT | 0666) // die "msgget: $!";

# A queue of one's own message: sent, looked at, received by its type.
msgsnd($queue, pack("l! a*", $$, "from $$"), 0) or die "msgsnd: $!";
my $message;
msgrcv($queue, $message, 100, $$, 0) or die "msgrcv: $!";
my ($type, $text) = unpack("l! a*", $message);
$type == $$ && $text eq "from $$" or die "received $type $text";
msgrcv($queue, $message, 100, $$, IPC_NOWAIT) and die "received twice";
$!{ENOMSG} or die "msgrcv: $!";

open(my $file, "+<", $path) or die "open: $!";
for (1 .. $times) {
    semop($id, pack("s!3", 0, -1, SEM_UNDO)) or die "semop: $!";
    flock($file, LOCK_EX) or die "flock: $!";
    seek($file, 0, SEEK_SET);
    my $number = <$file>;
    seek($file, 0, SEEK_SET);
    print $file $number + 1, "\n";
    $file->flush;
    flock($file, LOCK_UN) or die "flock: $!";
    semop($id, pack("s!3", 0, 1, SEM_UNDO)) or die "semop: $!";
}
