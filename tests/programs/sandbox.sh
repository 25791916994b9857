#!/bin/bash
# A sandbox of bwrap(1): a root of its own on a tmpfs, with binds, devices and terminals, and users and processes of its own. Another one
# in a sandbox.
asked=
trap 'asked=1' USR1
echo outer >/tmp/outer
# Where paths of /proc are covered, as they are in containers of real root, nobody may mount another.
proc=--proc
! grep -q ' /proc/' /proc/self/mounts || proc=
coproc INNER {
    exec bwrap --unshare-user --unshare-pid ${proc:---dir} /proc --unshare-uts --hostname sandbox --ro-bind /usr /usr --ro-bind /etc /etc --symlink usr/bin /bin \
        --symlink usr/lib /lib --symlink usr/lib64 /lib64 --tmpfs /tmp --bind /run /srv --dev /dev --dir /job --chdir /job \
        /usr/bin/bash
}
coproc NEST {
    exec bwrap --unshare-user --uid 1234 --gid 4321 --bind / / bwrap --unshare-user --uid 77 --gid 78 --ro-bind / / --tmpfs /tmp /usr/bin/bash
} 2>/dev/null
to=${INNER[1]} from=${INNER[0]}
ask() { echo "$1" >&"$to"; read -r -t 30 answer <&"$from"; }
must() { ask "$1"; [ "$answer" = "$2" ] || { echo "FAIL: $1: '$answer', not '$2'"; exit 1; }; }
must 'echo mine >/tmp/x; exec 7</tmp/x; exec 8>>/tmp/y; exec 6>/job/z; echo $(ls /)' 'bin dev etc job lib lib64 proc srv tmp usr'
must 'echo $$ $PPID' '2 1'
must 'cd /tmp && rm x && echo k' k
must 'exec 5</dev/zero; mkdir -m 700 /tmp/d; ls /tmp | wc -l' 2
ask 'id -u'; id=$answer
nest() { to=${NEST[1]} from=${NEST[0]}; must "$@"; to=${INNER[1]} from=${INNER[0]}; }
nest 'echo $(id -u) $(cat /proc/self/uid_map /proc/self/gid_map)' '77 77 1234 1 78 4321 1'
nest 'echo kept >/tmp/x; exec 7</tmp/x; touch /run/x 2>/dev/null; echo $?' 1
echo ready
while [ -z "$asked" ]; do sleep 0.01; done
must 'cat <&7' mine
must 'echo $(ls /)' 'bin dev etc job lib lib64 proc srv tmp usr'
must 'echo $$ $PPID' '2 1'
[ -z "$proc" ] || must 'echo $(ls /proc | grep ^[0-9] | sort -n | head -2) $(cat /proc/1/comm)' '1 2 bwrap'
must 'echo a >&8; cat /tmp/y; rm /tmp/y' a
must 'echo b >&6; cat /job/z' b
must pwd /tmp
must hostname sandbox
must 'id -u' $id
must 'stat -c %a /tmp/d' 700
must 'touch /usr/x /etc/x 2>/dev/null; echo $?' 1
must 'echo shared >/srv/shared; head -c1 <&5 | wc -c' 1
[ "$(cat /run/shared)" = shared ] || { echo "FAIL: what it has bound is not ours"; exit 1; }
[ ! -e /tmp/d ] || { echo "FAIL: its tmpfs is everybody's"; exit 1; }
must 'echo x | tee /dev/null | wc -l' 1
# mount(8) remounts nothing that it does not find in /proc; where it does, root in there may.
[ -n "$proc" ] || must 'umount /usr 2>/dev/null; mount -o remount,bind,rw /usr 2>/dev/null; touch /usr/x 2>/dev/null; echo $?' 1
nest 'echo $(id -u) $(cat /proc/self/uid_map /proc/self/gid_map)' '77 77 1234 1 78 4321 1'
nest 'echo $(cat <&7) $(ls /tmp)' 'kept x'
nest 'touch /run/x 2>/dev/null; echo $?' 1
echo ok
