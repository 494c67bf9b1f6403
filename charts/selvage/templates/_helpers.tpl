{{- define "selvage.revision" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{- /* What names of objects end in: nothing for the default revision. */ -}}
{{- define "selvage.suffix" -}}
{{- $revision := include "selvage.revision" . }}
{{- if ne $revision "default" }}-{{ $revision }}{{ end }}
{{- end }}

{{- define "selvage.check" -}}
{{- include "selvage.checkCA" . }}
{{- if ne .Release.Namespace "istio-system" }}
{{- fail (printf "the mesh's own namespace is istio-system, not %s: install with --namespace istio-system --create-namespace" .Release.Namespace) }}
{{- end }}
{{- if and .Values.everyNamespace (ne (include "selvage.revision" .) "default") (not .Values.setDefault) }}
{{- fail (printf "namespaces without a label get sidecars from the default revision: everyNamespace wants setDefault for revision %s" (include "selvage.revision" .)) }}
{{- end }}
{{- end }}

{{- define "selvage.checkCA" -}}
{{- $ca := .Values.ca }}
{{- if and $ca.address $ca.signer }}
{{- fail "ca.address and ca.signer are given: one authority signs for the mesh" }}
{{- end }}
{{- if and (or $ca.roots $ca.tlsSecret) (not (or $ca.address $ca.signer)) }}
{{- fail "ca.roots and ca.tlsSecret are for an authority elsewhere: give ca.address or ca.signer" }}
{{- end }}
{{- if and $ca.signer (not $ca.roots) }}
{{- $known := false }}
{{- range (get .Values.meshConfig "caCertificates" | default list) }}
{{- if and .pem (has $ca.signer (.certSigners | default list)) }}{{ $known = true }}{{ end }}
{{- end }}
{{- if not $known }}
{{- fail (printf "the roots of signer %s are not known: give meshConfig.caCertificates with pem and certSigners: [%s], or a ConfigMap (ca.roots)" $ca.signer $ca.signer) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "selvage.imageOf" -}}
{{ printf "%s/%s:%s" (trimSuffix "/" .root.Values.image.registry) .name (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}

{{- define "selvage.image" -}}
{{ .Values.image.controlPlane | default (include "selvage.imageOf" (dict "root" . "name" "selvaged")) }}
{{- end }}

{{- /* The sidecar's image as the injector's values have it: taken apart where it is of the form HUB/NAME:TAG. */ -}}
{{- define "selvage.proxy" -}}
{{- $image := .Values.image.proxy | default (include "selvage.imageOf" (dict "root" . "name" "proxy")) }}
{{- $form := "^([^@]+)/([^/:@]+):([^/@]+)$" }}
{{- if regexMatch $form $image }}
{{- toJson (dict "hub" (regexReplaceAll $form $image "${1}") "image" (regexReplaceAll $form $image "${2}") "tag" (regexReplaceAll $form $image "${3}")) }}
{{- else }}
{{- toJson (dict "hub" "docker.io/selvage" "image" $image "tag" .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "selvage.trustDomain" -}}
{{ .Values.trustDomain | default (get .Values.meshConfig "trustDomain") | default "cluster.local" }}
{{- end }}

{{- define "selvage.mesh" -}}
{{- $mesh := include "selvage.meshDefaults" . | fromYaml }}
{{- toYaml (mergeOverwrite $mesh (deepCopy .Values.meshConfig) (dict "trustDomain" (include "selvage.trustDomain" .))) }}
{{- end }}

{{- /* The version of MutatingAdmissionPolicy that the API server serves, nothing where there is none. `helm template` without a cluster
knows no kinds, only a version of Kubernetes: 1.36 serves v1. */ -}}
{{- define "selvage.mutatingPolicies" -}}
{{- $has := .Capabilities.APIVersions }}
{{- if .Values.heldWebhooks }}
{{- if or ($has.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version) }}
{{- "v1" }}
{{- else if $has.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" }}
{{- "v1beta1" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* failurePolicy of the validating webhooks by their name, as the cluster has it: the control plane sets it to Fail once validation is
proven to work, and an upgrade does not take that back. */ -}}
{{- define "selvage.policies" -}}
{{- $live := lookup "admissionregistration.k8s.io/v1" "ValidatingWebhookConfiguration" "" (printf "istio-validator%s-istio-system" (include "selvage.suffix" .)) }}
{{- $policies := dict }}
{{- range (get $live "webhooks" | default list) }}
{{- $_ := set $policies .name .failurePolicy }}
{{- end }}
{{- toJson $policies }}
{{- end }}
