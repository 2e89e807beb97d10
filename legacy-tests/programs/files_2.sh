# The second step: what the first has made is there, and is changed.
set -eu
cd "$1"
cat words 'a name with spaces' loud
paste -sd+ numbers | sed 's/+/ + /g' | cut -c1-20
awk '{ sum += $1 } END { print sum }' numbers
stat -c '%n %F %a %h %s' words tree/link tree/c/hard
stat -c '%n %F %a %h' tree/a
date -u -r tree/x
find tree -type f | sort | xargs cat
readlink tree/link
cat tree/link
cp -a tree copy
diff -r tree copy && echo same
tar cf - tree | (mkdir unpacked && cd unpacked && tar xf -)
diff -r tree unpacked/tree && echo same
date -u -r unpacked/tree/x
mv copy moved
mv words tree/words
sed -i 's/two/TWO/' 'a name with spaces'
split -l 300 numbers part-
cat part-* | cmp - numbers && echo same
rm part-*
tee loud.2 <loud | grep -c T
sort numbers | uniq -c | wc -l
comm -12 loud loud.2 | wc -l
stat -c %s sparse
tail -c 3 sparse
cksum zeros
