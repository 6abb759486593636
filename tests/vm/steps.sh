#!/bin/bash
# What the virtual machine does at each boot; see tests/src/vm.rs.
set -uo pipefail
export FLOTILLA_BIN_DIR=/opt/flotilla-bin PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export KUBECONFIG=/var/lib/flotilla/controlplane/admin.kubeconfig KUBECACHEDIR=/tmp/kube-cache
cd /opt/flotilla || exit 1

fail() {
    journalctl -n 40 --no-pager -u flotilla-agent -u flotilla-controlplane
    echo "VM-RESULT failed: $*"
    exit 1
}
servers() { pgrep -f '^/bin/testserver' | sort | tr '\n' ' '; }
until_true() { # until_true SECONDS WHAT COMMAND…
    local seconds=$1 what=$2 _
    shift 2
    for _ in $(seq "$seconds"); do "$@" >/dev/null 2>&1 && return; sleep 1; done
    fail "waited ${seconds} s for $what"
}
node_ready() { kubectl get node debian12 | grep -q ' Ready'; }
answers() { curl -sS --fail --max-time 5 "http://$(kubectl get svc hello -o 'jsonpath={.spec.clusterIP}')/hostname"; }
same_servers() { # same_servers WHEN
    [ "$(servers)" = "$before" ] || fail "containers changed by $1: $before became $(servers)"
    echo "same containers after $1: $before"
}

case $(cat /root/phase 2>/dev/null || echo install) in
    install)
        grep -q cgroup2 /proc/mounts || fail "no cgroup v2"
        # Loaded before the first look: a module brings settings of its own with it.
        modprobe -a overlay nf_tables nf_conntrack vxlan 2>/dev/null
        $FLOTILLA_BIN_DIR/lab snapshot host /root/before || fail "snapshot"
        scripts/quickstart || fail "quickstart"
        scripts/quickstart || fail "quickstart a second time"
        before=$(servers)
        [ "$(wc -w <<<"$before")" = 3 ] || fail "not three containers: $before"
        systemctl restart flotilla-agent || fail "systemctl restart flotilla-agent"
        until_true 60 "the node to be Ready after a restart" node_ready
        same_servers "a restart of the agent"
        cp /opt/flotilla-bin/agent.next /opt/flotilla-bin/agent
        scripts/install binaries || fail "installing the next version"
        systemctl restart flotilla-agent || fail "restart into the next version"
        until_true 60 "the node to be Ready after an upgrade" node_ready
        until_true 60 "the service after an upgrade" answers
        same_servers "an upgrade of the agent"
        echo booted >/root/phase
        sync
        systemctl reboot
        ;;
    booted)
        modprobe -a overlay nf_tables nf_conntrack vxlan 2>/dev/null
        until_true 120 "the node to be Ready after a reboot" node_ready
        until_true 120 "the service after a reboot" answers
        [ "$(servers | wc -w)" = 3 ] || fail "not three containers after a reboot: $(servers)"
        echo "the service answers after a reboot"
        scripts/quickstart --down || fail "quickstart --down"
        $FLOTILLA_BIN_DIR/lab snapshot host /root/after || fail "snapshot"
        $FLOTILLA_BIN_DIR/lab diff /root/before /root/after >/root/changed || { cat /root/changed; fail "the machine is not as it was"; }
        echo "VM-RESULT passed"
        ;;
esac
