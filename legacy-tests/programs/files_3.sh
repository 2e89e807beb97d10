# The third step: what both have done is there; programs are started from here; then everything goes.
set -eu
cd "$1"
ls -R
cat 'a name with spaces' tree/words
test ! -e words && test -d moved/a/b && test -L moved/link && echo moved
cp /bin/true program
./program && echo started
printf '#!/bin/sh\necho script "$@"\n' >script
chmod +x script
./script with arguments
(cd tree/a/b && pwd -P | sed 's,.*/tree,tree,' && cat ../../x)
grep -rl TWO . | sort
find . -type l -o -type p -o -perm 750 | sort
find . -newermt '2002-01-01' -name x
install -m 640 numbers installed
stat -c '%a %s' installed
ln -sf nowhere tree/link
test ! -e tree/link && readlink tree/link
rm -r tree moved unpacked
rmdir none 2>/dev/null || echo "no such folder"
mkdir -m 1777 sticky && stat -c %A sticky
seq 1 20000 >long & seq 1 20000 >long.2 & wait
cmp long long.2 && echo same
rm -rf -- *
ls -A | wc -l
