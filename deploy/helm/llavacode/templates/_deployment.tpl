{{/* The Deployment of one role, and its PodDisruptionBudget. Takes root, role and candidate. */}}

{{- define "llavacode.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* User 1000 is the image's, and its group owns the volumes. */}}
{{- define "llavacode.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "llavacode.probes" -}}
{{- $port := ternary "http" "metrics" (eq .role "gateway") }}
{{- $scheme := ternary "HTTPS" "HTTP" (and (eq .role "gateway") (ne .root.Values.gateway.tls.secretName "")) -}}
startupProbe:
  httpGet: { path: {{ ternary "/livez" "/readyz" (eq .role "gateway") }}, port: {{ $port }}, scheme: {{ $scheme }} }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ div (add (int64 .root.Values.startSeconds) 4) 5 }}
readinessProbe:
  httpGet: { path: /readyz, port: {{ $port }}, scheme: {{ $scheme }} }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
# A minute: a process that is only busy is not killed with all that it has in work.
livenessProbe:
  httpGet: { path: /livez, port: {{ $port }}, scheme: {{ $scheme }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* Fills a volume with a bundle. Takes root, role and candidate, and the name of the volume. */}}
{{- define "llavacode.bundleContainer" -}}
{{- $v := .root.Values }}
{{- $bundle := include "llavacode.bundleOf" . | fromJson -}}
- name: {{ .volume }}
  image: {{ $bundle.init.image | default (include "llavacode.image" .) | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  {{- with $bundle.init.command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- else }}
  args:
    - export
    - --llm=/app/models/tiny-coder
    - --to={{ include "llavacode.bundlePath" . }}
    - --precision={{ (include "llavacode.modelOf" . | fromJson).precision }}
  {{- end }}
  resources:
    {{- include "llavacode.resources" . | nindent 4 }}
  securityContext:
    {{- include "llavacode.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: {{ .volume }}
      mountPath: /bundle
    - name: tmp
      mountPath: /tmp
{{- end }}

{{- define "llavacode.deployment" -}}
{{- $root := .root }}
{{- $v := $root.Values }}
{{- $role := .role }}
{{- $pool := get $v $role }}
{{- $name := printf "%s-%s" (include "llavacode.fullname" $root) (include "llavacode.component" .) }}
{{- $bundle := include "llavacode.bundleOf" . | fromJson }}
{{- $ofCandidate := dict "root" $root "role" $role "candidate" true "volume" "candidate" }}
{{- $fillsCandidate := and (eq $role "gateway") $v.candidate.enabled (eq $v.candidate.bundle.source "init") }}
{{- $onGpu := include "llavacode.onGpu" . }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "llavacode.labels" . | nindent 4 }}
spec:
  {{- if .candidate }}
  replicas: {{ get $v.candidate.replicas $role }}
  {{- else if not (and (ne $v.autoscaling.kind "none") (hasKey $v.autoscaling $role)) }}
  replicas: {{ $pool.replicas }}
  {{- end }}
  minReadySeconds: {{ $v.minReadySeconds }}
  revisionHistoryLimit: 5
  # Longer than a start may take, so that a slow first start does not count as a rollout that hangs.
  progressDeadlineSeconds: {{ add (int64 $v.startSeconds) (int64 $v.minReadySeconds) 300 }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $pool.maxSurge }}
      maxUnavailable: {{ $pool.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "llavacode.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "llavacode.labels" . | nindent 8 }}
        {{- with include "llavacode.llmdRole" $role }}
        llm-d.ai/role: {{ . }}
        {{- end }}
      annotations:
        # Settings are read at the start: other ones need other pods.
        checksum/settings: {{ toJson $v.settings | sha256sum }}
        {{- with $pool.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "llavacode.fullname" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "llavacode.graceSeconds" . }}
      {{- with $v.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if and $onGpu $v.gpu.runtimeClassName }}
      runtimeClassName: {{ $v.gpu.runtimeClassName }}
      {{- end }}
      securityContext:
        {{- include "llavacode.podSecurity" 1000 | nindent 8 }}
      topologySpreadConstraints:
        {{- range $v.topologyKeys }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          matchLabelKeys: [pod-template-hash]
          labelSelector:
            matchLabels:
              {{- include "llavacode.selector" $ | nindent 14 }}
        {{- end }}
      {{- with (ternary (merge (dict) $pool.nodeSelector $v.gpu.nodeSelector) $pool.nodeSelector (eq $onGpu "yes")) }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with (ternary (concat $pool.tolerations $v.gpu.tolerations) $pool.tolerations (eq $onGpu "yes")) }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pool.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if or (eq $bundle.source "init") $fillsCandidate }}
      initContainers:
        {{- if eq $bundle.source "init" }}
        {{- include "llavacode.bundleContainer" (dict "root" $root "role" $role "candidate" .candidate "volume" "bundle") | nindent 8 }}
        {{- end }}
        {{- if $fillsCandidate }}
        {{- include "llavacode.bundleContainer" $ofCandidate | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ $role }}
          image: {{ include "llavacode.image" . | quote }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          args:
            {{- include "llavacode.arguments" . | nindent 12 }}
          env:
            {{- include "llavacode.environment" . | nindent 12 }}
          ports:
            {{- if eq $role "gateway" }}
            - { name: http, containerPort: 8000, protocol: TCP }
            {{- else }}
            - { name: grpc, containerPort: 9000, protocol: TCP }
            - { name: metrics, containerPort: 9090, protocol: TCP }
            {{- end }}
          {{- include "llavacode.probes" . | nindent 10 }}
          lifecycle:
            preStop:
              exec:
                command: [sleep, {{ include "llavacode.preStopSeconds" . | quote }}]
          resources:
            {{- include "llavacode.resources" . | nindent 12 }}
          securityContext:
            {{- include "llavacode.containerSecurity" . | nindent 12 }}
          volumeMounts:
            {{- include "llavacode.mounts" . | nindent 12 }}
      volumes:
        {{- include "llavacode.volumes" . | nindent 8 }}
{{- if $v.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "llavacode.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $v.podDisruptionBudget.maxUnavailable }}
  # A pod that never became ready does not keep a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "llavacode.selector" . | nindent 6 }}
{{- end }}
{{- end }}
