# The first of three steps, each on a node of its own: makes files in the folder $1.
set -eu
cd "$1"
umask 022
seq 1 1000 >numbers
printf 'one\ntwo\nthree\n' >words
echo four >>words
mkdir -p tree/a/b tree/c
for name in tree/x tree/a/y tree/a/b/z; do echo "$name" >$name; done
ln -s a/b/z tree/link
ln words tree/c/hard
chmod 750 tree/a
touch -d '2001-02-03 04:05:06 UTC' tree/x
cp words 'a name with spaces'
printf 'all: out\nout: words\n\tsort words > out\n' >Makefile
mkfifo pipe
(cat words >pipe) &
cat pipe | tr a-z A-Z >loud
wait
rm pipe
dd if=/dev/zero of=zeros bs=4096 count=100 2>/dev/null
truncate -s 10M sparse
printf end >>sparse
sort -rn numbers | head -3
wc -l numbers words
ls -A
