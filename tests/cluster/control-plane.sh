# Sourced by `up`: keys, etcd, kube-apiserver and kube-controller-manager, for the whole cluster and for the control plane alone.
# shellcheck shell=bash

leaf() { "$BIN/pki" leaf -ca "$PKI/ca" -out "$PKI/$1" -cn "$2" -org "${3:-}" -san "${4:-}"; }

kubeconfig() { # FILE LEAF
  put "$1" 600 <<Y
apiVersion: v1
kind: Config
clusters: [{name: outrigger-tests, cluster: {server: "https://$NODE_IP:$API_PORT", certificate-authority-data: $(base64 -w0 < "$PKI/ca.crt")}}]
users: [{name: $2, user: {client-certificate-data: $(base64 -w0 < "$PKI/$2.crt"), client-key-data: $(base64 -w0 < "$PKI/$2.key")}}]
contexts: [{name: outrigger-tests, context: {cluster: outrigger-tests, user: $2}}]
current-context: outrigger-tests
Y
}

make_keys() {
  "$BIN/pki" ca -out "$PKI/ca" -cn outrigger-tests-ca
  "$BIN/pki" ca -out "$PKI/front-ca" -cn outrigger-tests-front-ca
  "$BIN/pki" key -out "$PKI/sa"
  "$BIN/pki" leaf -ca "$PKI/front-ca" -out "$PKI/front-proxy" -cn front-proxy-client
  leaf apiserver kube-apiserver "" \
    "kubernetes,kubernetes.default,kubernetes.default.svc,kubernetes.default.svc.cluster.local,localhost,127.0.0.1,$NODE_IP,$API_SVC_IP"
  leaf admin admin system:masters
  leaf kcm system:kube-controller-manager
  leaf kubelet-client kube-apiserver-kubelet-client system:masters
  kubeconfig "$CONF/kcm.kubeconfig" kcm
  kubeconfig "$KUBECONFIG" admin
}

# The state is thrown away after the tests, so etcd need not wait for the disk.
start_etcd() {
  start etcd "$BIN/etcd" --name node --data-dir "$DATA/etcd" \
    --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
    --listen-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" --initial-advertise-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
    --initial-cluster "node=http://127.0.0.1:$ETCD_PEER_PORT" --unsafe-no-fsync --log-level warn
}

start_apiserver() {
  start kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers "http://127.0.0.1:$ETCD_PORT" \
    --bind-address "$NODE_IP" --advertise-address "${ADVERTISE_IP:-$NODE_IP}" --secure-port "$API_PORT" \
    --service-cluster-ip-range "$(both $SVC_CIDR $SVC_CIDR6)" \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$PKI/sa.pub" --service-account-signing-key-file "$PKI/sa.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" --kubelet-preferred-address-types InternalIP \
    --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
    --requestheader-client-ca-file "$PKI/front-ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --shutdown-delay-duration 0s --profiling=false
}

start_controller_manager() {
  restart_if_changed kube-controller-manager kcm.kubeconfig
  start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig "$CONF/kcm.kubeconfig" \
    --authentication-kubeconfig "$CONF/kcm.kubeconfig" --authorization-kubeconfig "$CONF/kcm.kubeconfig" \
    --bind-address 127.0.0.1 --secure-port "$KCM_PORT" --cert-dir "$DATA/kcm-certs" --leader-elect=false \
    --use-service-account-credentials --root-ca-file "$PKI/ca.crt" --service-account-private-key-file "$PKI/sa.key" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
    --requestheader-client-ca-file "$PKI/front-ca.crt" --profiling=false
}
