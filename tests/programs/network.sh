#!/bin/bash
# Devices, addresses and routes, of the container's network and of one that nobody else has, with a server at one of the addresses.
asked=
trap 'asked=1' USR1
make='ip link set lo up && ip address add 10.9.8.7/32 dev lo && ip address add fd00::7/128 dev lo
    ip link add name dum0 mtu 1434 type veth peer name dum1 && ip link set dum0 up && ip link set dum1 up && ip address add 192.0.2.1/24 brd + dev dum0 label dum0:one
    ip link add left type veth peer name right && ip link set left up && ip link set right up && ip address add 198.51.100.1/30 dev left
    ip link add link left name left.7 type vlan id 7 2>/dev/null && ip link set left.7 up
    ip link add dummy type dummy 2>/dev/null && ip link set dummy up
    ip link add link dum0 name mac0 type macvlan mode bridge
    ip link add br0 type bridge ageing_time 1234 && ip link add port type veth peer name far && ip link set port master br0
    ip link set br0 up && ip link set port up && ip link set far up && ip address add 10.7.0.1/24 dev br0 && bridge link set dev port isolated on learning off
    ip route add 203.0.113.0/24 via 192.0.2.99 metric 5 && ip route add default dev left src 198.51.100.1
    sleep 1; while ip -6 -oneline address show tentative | grep --quiet inet6; do sleep 0.1; done; sleep 1'
show='bridge -details link; ip -oneline address show; ip -oneline link show; ip route show; ip -6 route show'
# Without what belongs to a moment.
tell() { sed 's/valid_lft.*//; s/ nodad//; s/ tentative//; s/ qlen [0-9]*//' | sort; }
server='import socket
s = socket.socket(); s.bind(("10.9.8.7", 4321)); s.listen()
while True: c = s.accept()[0]; c.sendall(b"here" + c.recv(9)); c.close()'
client='import socket
c = socket.create_connection(("10.9.8.7", 4321)); c.sendall(b", too"); print(c.recv(99).decode())'
printf '%s\n' "$server" >/tmp/server.py
printf '%s\n' "$client" >/tmp/client.py
coproc INNER { exec unshare --net bash; }
to=${INNER[1]} from=${INNER[0]}
ask() {
    printf '%s\necho end\n' "$1" >&"$to"; answer=
    while read -r -t 60 line <&"$from" && [ "$line" != end ]; do answer+=$line$'\n'; done
}
eval "$make"
ask "$make"
python3 /tmp/server.py &
served=$!
ask 'python3 /tmp/server.py & sleep 1'
before=$(eval "$show" | tell)
[ "$(grep --count --extended-regexp '10.9.8.7|dum0:one|right@left|mac0@dum0|198.51.100.1|203.0.113.0|10.7.0.1|port@far.*br0' <<<"$before")" -ge 10 ] || { echo "FAIL: $before"; exit 1; }
ask "$show"; inside=$(tell <<<"$answer")
[ "$(grep --count --extended-regexp '10.9.8.7|dum0:one|right@left|mac0@dum0|198.51.100.1|203.0.113.0|10.7.0.1|port@far.*br0' <<<"$inside")" -ge 10 ] || { echo "FAIL: $inside"; exit 1; }
echo ready
while [ -z "$asked" ]; do sleep 0.01; done
after=$(eval "$show" | tell)
[ "$before" = "$after" ] || { echo "FAIL: $(diff <(echo "$before") <(echo "$after"))"; exit 1; }
ask "$show"; after=$(tell <<<"$answer")
[ "$inside" = "$after" ] || { echo "FAIL: inside: $(diff <(echo "$inside") <(echo "$after"))"; exit 1; }
[ "$(python3 /tmp/client.py)" = 'here, too' ] || { echo "FAIL: nobody serves"; exit 1; }
ask 'python3 /tmp/client.py'
[ "$answer" = 'here, too'$'\n' ] || { echo "FAIL: nobody serves inside: $answer"; exit 1; }
ip link del left && ip link del dum0 && ip address del 10.9.8.7/32 dev lo || { echo "FAIL: what cannot be removed"; exit 1; }
kill "$served"
ask 'kill %1'
echo ok
