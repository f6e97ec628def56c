{{/* All names are fixed: a cluster has one Outrigger. The helpers take (list $ "controller"). */}}

{{- define "outrigger.image" -}}
{{- $root := index . 0 -}}
{{ printf "%s/%s:%s" $root.Values.image.registry (index . 1) ($root.Values.image.tag | default $root.Chart.AppVersion) }}
{{- end }}

{{- define "outrigger.selector" -}}
app.kubernetes.io/name: outrigger-{{ index . 1 }}
app.kubernetes.io/part-of: outrigger
{{- end }}

{{- define "outrigger.labels" -}}
{{- $root := index . 0 -}}
{{ include "outrigger.selector" . }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Values.image.tag | default $root.Chart.AppVersion | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What the pods of both Deployments have in common. */}}
{{- define "outrigger.podSpec" -}}
{{- $root := index . 0 -}}
serviceAccountName: outrigger-{{ index . 1 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $root.Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $root.Values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
# On different nodes and in different zones where that is possible.
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "outrigger.selector" $ | nindent 6 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
terminationGracePeriodSeconds: 30
enableServiceLinks: false
{{- end }}

{{- define "outrigger.container" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
image: {{ include "outrigger.image" . | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- define "outrigger.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
livenessProbe:
  httpGet: {path: /livez, port: admin}
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* What the injector reads: outrigger-injector's Settings. */}}
{{- define "outrigger.settings" -}}
{{- $proxy := .Values.proxy -}}
{{- $resources := dict -}}
{{- range $key := list "cpuRequest" "cpuLimit" "memoryRequest" "memoryLimit" -}}
{{- $_ := set $resources $key (get $proxy.resources $key | default nil) -}}
{{- end -}}
{{- $tracing := dict "endpoint" .Values.tracing.endpoint "caCertificates" (.Values.tracing.caCertificates | default "") "protocol" .Values.tracing.protocol "sampleRatio" (float64 .Values.tracing.sampleRatio) "notSampled" (.Values.tracing.notSampled | default "Omit") -}}
{{- dict
  "namespace" .Release.Namespace
  "image" (include "outrigger.image" (list . "proxy"))
  "imagePullPolicy" .Values.image.pullPolicy
  "trustDomain" .Values.trustDomain
  "tracing" (ternary $tracing nil (ne .Values.tracing.endpoint ""))
  "resources" $resources
  "logLevel" $proxy.logLevel
  "accessLog" $proxy.accessLog
  "forwardedFor" ($proxy.forwardedFor | default "Leave")
  "drainTimeout" $proxy.drainTimeout
  "closeExpired" ((.Values.identity).closeExpired | default false)
  "opaquePorts" $proxy.opaquePorts
  | toYaml }}
{{- end }}
