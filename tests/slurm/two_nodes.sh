#!/usr/bin/env bash
# A real Slurm on this machine, for tests: a controller and two nodes that count eight processors each, whatever there
# are, no accounting, and a munge of its own. Everything lies in one folder, which a second start replaces.
#
#   sudo tests/slurm/two_nodes.sh start DIR             then: export SLURM_CONF=DIR/slurm.conf
#   sudo tests/slurm/two_nodes.sh stop DIR
#   sudo tests/slurm/two_nodes.sh with DIR COMMAND...   starts it, runs the command, stops it
#
# Needs root and Debian's or Ubuntu's slurm-wlm and munge, which `start` installs where they are missing.
set -euo pipefail

fail() {
    echo "two_nodes.sh: $1" >&2
    exit 1
}

[ $# -ge 2 ] || fail "usage: two_nodes.sh start|stop DIR, or two_nodes.sh with DIR COMMAND..."
[ "$(id -u)" = 0 ] || fail "needs root: daemons of Slurm start jobs for others (run it with sudo, or in a container)"
what=$1 dir=$(realpath -m "$2") cluster=two-nodes
shift 2
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

# A number in a file of an earlier start may belong to another process by now.
end() {
    local pid
    pid=$(cat "$2" 2>/dev/null) || return 0
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

# Whether nothing lies in the folder, or what an earlier start has made.
is_ours() {
    [ -e "$dir" ] || return 0
    [ -d "$dir" ] || return 1
    [ -z "$(ls -A "$dir")" ] || grep -qx "ClusterName=$cluster" "$SLURM_CONF" 2>/dev/null
}

stop() {
    if [ -f "$SLURM_CONF" ] && [ -f "$dir/slurmctld.pid" ]; then
        timeout 10 scancel --user=root >/dev/null 2>&1 || true
        # Nodes end the steps of jobs; without nodes nobody would.
        for _ in $(seq 50); do
            [ -z "$(timeout 5 squeue --noheader --states=running,completing 2>/dev/null)" ] && break
            sleep 0.1
        done
    fi
    end slurmd "$dir/slurmd.node1.pid"
    end slurmd "$dir/slurmd.node2.pid"
    end slurmctld "$dir/slurmctld.pid"
    end munged "$dir/munged.pid"
}

install() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null &&
        command -v munged >/dev/null && return
    command -v apt-get >/dev/null || fail "slurm-wlm and munge are missing, and there is no apt-get to install them"
    echo "two_nodes.sh: installing slurm-wlm and munge" >&2
    # The packages' own services would use the usual ports; where nothing starts services this changes nothing.
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; fail "apt-get cannot install slurm-wlm and munge"; }
    rm "$log"
}

# Three ports behind each other that nobody listens at.
free_ports() {
    local first port taken
    for _ in $(seq 100); do
        first=$((10000 + RANDOM % 20000)) taken=
        for port in $first $((first + 1)) $((first + 2)); do
            (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && taken=1
        done
        [ -z "$taken" ] && { echo "$first"; return; }
    done
    fail "finds no free ports"
}

configure() {
    local host port memory
    host=$(hostname -s) port=$(free_ports)
    memory=$(awk '/MemTotal/ { print int($2 / 1024 / 2) }' /proc/meminfo)
    mkdir -p "$dir"/{state,spool,log}
    dd if=/dev/urandom of="$dir/munge.key" bs=1024 count=1 2>/dev/null
    chmod 600 "$dir/munge.key"
    cat >"$SLURM_CONF" <<CONF
ClusterName=$cluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PriorityType=priority/basic
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=10
MinJobAge=300
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=8 RealMemory=$memory
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

start() {
    stop
    install
    rm -rf "$dir"
    configure
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" 2>"$dir/log/munged.err" ||
        { cat "$dir/log/munged.err" >&2; fail "munged does not start"; }
    slurmctld || fail "slurmctld does not start: see $dir/log/slurmctld.log"
    slurmd -N node1 || fail "slurmd does not start: see $dir/log/slurmd.node1.log"
    slurmd -N node2 || fail "slurmd does not start: see $dir/log/slurmd.node2.log"
    for _ in $(seq 100); do
        [ "$(timeout 5 sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = 2 ] && return
        sleep 0.2
    done
    tail -n 5 "$dir"/log/*.log >&2
    fail "the nodes do not become idle within 20 s"
}

is_ours || fail "$dir is neither empty nor of an earlier start, which a start removes"

case $what in
start) start ;;
stop) stop ;;
with)
    trap stop EXIT
    start
    "$@"
    ;;
*) fail "$what: start, stop or with" ;;
esac
