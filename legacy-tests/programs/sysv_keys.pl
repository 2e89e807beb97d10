# Makes or removes what sysv.pl uses: sysv_keys.pl KEY make | remove
use strict;
use warnings;
use IPC::SysV qw(IPC_CREAT IPC_EXCL IPC_RMID SETVAL);

my $key = oct $ARGV[0];
if ($ARGV[1] eq "make") {
    my $id = semget($key, 1, IPC_CREAT | IPC_EXCL | 0666) // die "semget: $!";
    semctl($id, 0, SETVAL, 1) // die "semctl: $!";
} else {
    semctl(semget($key, 0, 0) // die("semget: $!"), 0, IPC_RMID, 0) // die "semctl: $!";
    msgctl(msgget($key, 0) // die("msgget: $!"), IPC_RMID, 0) // die "msgctl: $!";
}
