# Sourced by the scripts of this folder: where the cluster lives, its addresses, what is pinned, and the few functions that
# they share. Everything that is written is in CLUSTER_DIR, except what README.md lists.
# shellcheck shell=bash disable=SC2034

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Shared by all clones of the repository, so that Kubernetes is built once on a machine.
CLUSTER_DIR=${CLUSTER_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/outrigger-cluster}
BIN=$CLUSTER_DIR/bin                # built once; `down --wipe` keeps it
IMAGES=$CLUSTER_DIR/images          # image archives; kept too
PKI=$CLUSTER_DIR/pki
RUN=$CLUSTER_DIR/run                # process ids, sockets
LOGS=$CLUSTER_DIR/log
CONF=$CLUSTER_DIR/conf
DATA=$CLUSTER_DIR/data              # etcd, containerd, kubelet, CNI

HELM_VERSION=v3.22.0
GATEWAY_API_VERSION=v1.6.3 # of the CRDs; its conformance suite, in src/gateway-api, wants those of its own version
GATEWAY_API=$CLUSTER_DIR/gateway-api-$GATEWAY_API_VERSION # CRDs, by channel
COREDNS_IMAGE=outrigger.test/coredns:1
ECHO_IMAGE=registry.k8s.io/gateway-api/echo-advanced:v1.5.1 # the name that the suite's manifests have
EXT_AUTHZ_IMAGE=registry.istio.io/testing/ext-authz:latest # the name in Istio's sample
PAUSE_IMAGE=outrigger.test/pause:1

# The node. All its addresses are on bridges of this machine.
NODE=outrigger-node
NODE_IF=orgr-node
POD_IF=orgr-pods
NODE_IP=10.243.0.1;      NODE_IP6=fd00:10:243::1
POD_CIDR=10.244.0.0/16;  POD_CIDR6=fd00:10:244::/64
SVC_CIDR=10.96.0.0/16;   SVC_CIDR6=fd00:10:96::/112
API_SVC_IP=10.96.0.1
DNS_IP=10.96.0.10
FENCE=outrigger_test_fence
# IPv6 beside IPv4, where the kernel has it.
DUAL_STACK=${CLUSTER_DUAL_STACK:-$([ -e /proc/net/if_inet6 ] && echo 1 || echo 0)}

# Away from the usual ports: the machine may have a cluster of its own.
ETCD_PORT=22379; ETCD_PEER_PORT=22380
API_PORT=26443;  KCM_PORT=21257; SCHEDULER_PORT=21259
KUBELET_PORT=21250; KUBELET_HEALTH_PORT=21248
PROXY_METRICS_PORT=21249; PROXY_HEALTH_PORT=21256
CONTAINERD_SOCK=$RUN/containerd.sock
export KUBECONFIG=$CLUSTER_DIR/kubeconfig

# The control plane alone (`up --control-plane`) is apart from the node's: other ports, other state, loopback only.
control_plane_only() {
  PKI=$CLUSTER_DIR/control-plane/pki; RUN=$CLUSTER_DIR/control-plane/run; LOGS=$CLUSTER_DIR/control-plane/log
  CONF=$CLUSTER_DIR/control-plane/conf; DATA=$CLUSTER_DIR/control-plane/data
  NODE_IP=127.0.0.1; DUAL_STACK=0
  ETCD_PORT=23379; ETCD_PEER_PORT=23380; API_PORT=27443; KCM_PORT=22257
  export KUBECONFIG=$CLUSTER_DIR/control-plane/kubeconfig
}

k() { "$BIN/kubectl" "$@"; }
say() { printf '%s %s\n' "$(date +%T)" "$*"; }
die() { echo "error: $*" >&2; exit 1; }

# PROGRAM=PACKAGE...: installs the Debian packages of those programs that are not there.
need_programs() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || [ -x "${pair%%=*}" ] || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || die "not installed: ${missing[*]} (the names of Debian's packages)"
  say "installing ${missing[*]}"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
    >"$CLUSTER_DIR/apt.log" 2>&1 </dev/null || { tail -n 20 "$CLUSTER_DIR/apt.log" >&2; die "apt-get could not install ${missing[*]}"; }
}

# A process is remembered as "PID STARTTIME". Both must match: the number alone may be somebody else's by now.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }
alive() { # NAME
  local pid started
  [ -f "$RUN/$1.pid" ] || return 1
  read -r pid started < "$RUN/$1.pid" || return 1
  [ -n "$pid" ] && [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}
start() { # NAME COMMAND...
  local name=$1; shift
  alive "$name" && return 0
  setsid nohup "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  local pid=$!
  sleep 0.05 # until the shell's fork has become the command
  echo "$pid $(start_time $pid)" > "$RUN/$name.pid"
}
stop() { # NAME [SECONDS before it is killed]
  local pid n=$(( ${2:-10} * 10 ))
  if alive "$1"; then
    read -r pid _ < "$RUN/$1.pid"
    kill -TERM "$pid" 2>/dev/null || true
    while [ $n -gt 0 ] && alive "$1"; do sleep 0.1; n=$((n-1)); done
    ! alive "$1" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$RUN/$1.pid"
}

# Writes stdin to FILE where that changes it, and remembers its name in $changed. A file that is the same stays untouched:
# kube-proxy, for one, exits whenever its configuration is written.
changed=" "
put() { # FILE [MODE]
  cat > "$1.part"; chmod "${2:-644}" "$1.part"
  if cmp -s "$1.part" "$1"; then rm -f "$1.part"; else mv "$1.part" "$1"; changed="$changed$(basename "$1") "; fi
}
# Stops a process of which a file changed, so that `start` starts it anew.
restart_if_changed() { # NAME FILE...
  local name=$1 file; shift
  for file in "$@"; do if [[ $changed == *" $file "* ]]; then stop "$name"; return 0; fi; done
}
wait_for() { # SECONDS WHAT COMMAND...
  local n=$(( $1 * 5 )) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    n=$((n-1))
    [ $n -gt 0 ] || die "gave up waiting for $what; its log is in $LOGS"
    sleep 0.2
  done
}
