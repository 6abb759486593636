want() { [ "$2" = "$3" ] || { echo "$1: got '$2', want '$3'"; exit 1; }; }
want init "$(cat /shared/file)" prepared
want sidecar "$(cat /shared/side)" side
want env "$COLOUR" blue
want secret "$PASSWORD" s3cret
want joined "$JOINED" blue-features
want pod "$POD_NAME" features
want memory "$MEMORY" 64
want from "$CM_colour" blue
want cwd "$(readlink /proc/1/cwd)" /tmp
want hostname "$(hostname)" named
want hosts "$(grep -c "$POD_IP.*named" /etc/hosts)" 1
want id "$(id -u):$(id -g)" 1000:2000
want groups "$(id -G)" "2000 3000 4000"
want config "$(cat /settings/file.txt)" "from a config map"
want hidden "$(cat /hidden/password)" s3cret
want mode "$(stat -L -c %a /hidden/password)" 440
want sub "$(cat /single.txt)" "from a config map"
want labels "$(grep tier /about/labels)" 'tier="front"'
want note "$(cat /about/note)" hello
want deep "$(cat /all/deep/colour)" blue
want token "$(cut -d. -f3 /all/token | grep -c .)" 1
want account "$(ls /var/run/secrets/kubernetes.io/serviceaccount | tr '\n' ' ')" "ca.crt namespace token "
want namespace "$(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)" spine
want capabilities "$(sed -n 's/^CapEff:\s*//p' /proc/self/status)" 0000000000000000
want seccomp "$(sed -n 's/^Seccomp:\s*//p' /proc/self/status)" 2
want nonewprivs "$(sed -n 's/^NoNewPrivs:\s*//p' /proc/self/status)" 1
want readonly "$(touch /x 2>&1 | grep -c 'Read-only')" 1
want machine "$(test -d /machine/bin && echo yes)" yes
want tmpfs "$(grep ' /memory ' /proc/mounts | cut -d' ' -f1)" tmpfs
want service "$KUBERNETES_SERVICE_PORT" 443
echo "all good"
