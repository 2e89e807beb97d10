//! The server decides by the caller's true ids and groups.

use crate::programs::{FAILS, World};

/// Runs a script as another user with given groups.
const AS: &str = "
    as() {
        user=$1 groups=$2; shift 2
        setpriv --reuid=$user --regid=$user --groups=$groups sh -euc \"$FAILS; $*\"
    }
    chmod 755 .
";

fn check(script: &str) {
    if let Some(world) = World::new(1) {
        world.sh(&format!("FAILS='{FAILS}'{AS}{script}"));
    }
}

#[test]
fn files_of_others_are_closed_and_groups_open_them() {
    check(
        "
        echo secret > a; chown 1000:4242 a; chmod 640 a
        as 1000 1000 'cat a; echo more >> a'
        as 2000 4242 'cat a; fails dd of=a oflag=append conv=notrunc < /dev/null; fails truncate -s 0 a'
        as 2000 7,9,4242,5000 'cat a'
        as 2000 7,9 'fails cat a; test ! -r a; fails chmod 777 a; fails chown 2000 a; fails touch a'
        ",
    );
}

#[test]
fn directories_are_searched_and_changed_by_those_who_may() {
    check(
        "
        mkdir d; echo x > d/f; chmod 700 d
        as 2000 2000 'fails cat d/f; fails ls d; fails sh -c \"cd d\"'
        chmod 711 d; as 2000 2000 'cat d/f; fails ls d; fails touch d/g; fails rm d/f'
        mkdir t; chmod 1777 t; as 2000 2000 'touch t/a'
        as 3000 3000 'fails rm t/a; fails mv t/a t/b; touch t/c'
        as 2000 2000 'rm t/a'; mkdir g; chgrp 4242 g; chmod 2770 g
        as 2000 4242 'touch g/x; mkdir g/y'; test $(stat -c %u:%g g/x) = 2000:4242
        test $(stat -c %a g/y | head -c 1) = 2
        ",
    );
}

#[test]
fn the_umask_is_applied_once() {
    check(
        "
        umask 027; : > f; mkdir d; mkfifo p
        test \"$(stat -c %a f d p | tr '\\n' ' ')\" = '640 750 640 '
        umask 0; : > f0; mkdir -m 1777 d0; test \"$(stat -c %a f0 d0 | tr '\\n' ' ')\" = '666 1777 '
        ",
    );
}

#[test]
fn whoever_may_execute_need_not_be_able_to_read_and_the_other_way_round() {
    check(
        "
        cp /bin/echo e; chmod 711 e
        as 2000 2000 './e ran; fails cat e'
        chmod 744 e; as 2000 2000 'cat e > /dev/null; fails ./e no'
        chmod 700 e; as 2000 2000 'fails ./e no'; ./e root
        ",
    );
}

#[test]
fn set_user_id_bits_go_when_somebody_else_writes() {
    check(
        "
        echo x > a; chmod 6777 a; as 2000 2000 'echo y >> a'; test $(stat -c %a a) = 777
        chmod 6777 a; as 2000 2000 'truncate -s 0 a'; test $(stat -c %a a) = 777
        chmod 6777 a; as 2000 2000 ': > a'; test $(stat -c %a a) = 777
        chmod 6755 a; chown 2000 a; test $(stat -c %a a) = 755
        ",
    );
}
