package envoy

import (
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// AccessLog says where and how requests and connections are logged.
type AccessLog struct {
	File   string // "" for none
	Format string // "" for the default of text or JSON
	JSON   bool
}

// DefaultTextFormat is a line for people: what was asked, how it ended and why, how long it took, who called whom.
const DefaultTextFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% closed=%CONNECTION_TERMINATION_DETAILS% ` +
	`received=%BYTES_RECEIVED% sent=%BYTES_SENT% ms=%DURATION% service_ms=%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ` +
	`authority="%REQ(:AUTHORITY)%" id=%REQ(X-REQUEST-ID)% agent="%REQ(USER-AGENT)%" forwarded_for="%REQ(X-FORWARDED-FOR)%" ` +
	`client=%DOWNSTREAM_REMOTE_ADDRESS% client_id=%DOWNSTREAM_PEER_URI_SAN% local=%DOWNSTREAM_LOCAL_ADDRESS% sni=%REQUESTED_SERVER_NAME% ` +
	`upstream=%UPSTREAM_HOST% upstream_id=%UPSTREAM_PEER_URI_SAN% upstream_local=%UPSTREAM_LOCAL_ADDRESS% ` +
	`cluster=%UPSTREAM_CLUSTER_RAW% route=%ROUTE_NAME% failure="%UPSTREAM_TRANSPORT_FAILURE_REASON%"` + "\n"

// defaultJSONFormat has the fields of Istio's JSON access log, whose names log pipelines know, and the identities.
var defaultJSONFormat = map[string]string{
	"authority":                         "%REQ(:AUTHORITY)%",
	"bytes_received":                    "%BYTES_RECEIVED%",
	"bytes_sent":                        "%BYTES_SENT%",
	"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
	"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_peer_uri_san":           "%DOWNSTREAM_PEER_URI_SAN%",
	"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
	"duration":                          "%DURATION%",
	"method":                            "%REQ(:METHOD)%",
	"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
	"protocol":                          "%PROTOCOL%",
	"request_id":                        "%REQ(X-REQUEST-ID)%",
	"requested_server_name":             "%REQUESTED_SERVER_NAME%",
	"response_code":                     "%RESPONSE_CODE%",
	"response_code_details":             "%RESPONSE_CODE_DETAILS%",
	"response_flags":                    "%RESPONSE_FLAGS%",
	"route_name":                        "%ROUTE_NAME%",
	"start_time":                        "%START_TIME%",
	"upstream_cluster":                  "%UPSTREAM_CLUSTER_RAW%",
	"upstream_host":                     "%UPSTREAM_HOST%",
	"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
	"upstream_peer_uri_san":             "%UPSTREAM_PEER_URI_SAN%",
	"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	"user_agent":                        "%REQ(USER-AGENT)%",
	"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
}

// Loggers gives the logs of HTTP managers and TCP proxies; none when there is no file.
func (a AccessLog) Loggers() []*accesslogv3.AccessLog {
	if a.File == "" {
		return nil
	}
	log := &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{
		TypedConfig: pack(&filev3.FileAccessLog{
			Path: a.File, AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: a.format()},
		}),
	}}
	return []*accesslogv3.AccessLog{log}
}

// Unmatched gives the logs of a listener: only of connections that no filter chain takes, such as plain text to a port that
// wants mutual TLS. Nothing else would tell of them.
func (a AccessLog) Unmatched() []*accesslogv3.AccessLog {
	logs := a.Loggers()
	for _, l := range logs {
		l.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
	}
	return logs
}

// format falls back to the default for a format that cannot be read: translation has told the user, and a log that looks
// otherwise is better than a proxy without configuration.
func (a AccessLog) format() *corev3.SubstitutionFormatString {
	if a.JSON {
		fields := &structpb.Struct{}
		if a.Format == "" || protojson.Unmarshal([]byte(a.Format), fields) != nil {
			fields = defaultJSONFields()
		}
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields}}
	}
	text := a.Format
	if text == "" {
		text = DefaultTextFormat
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
	}}
}

func defaultJSONFields() *structpb.Struct {
	fields := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(defaultJSONFormat))}
	for name, operator := range defaultJSONFormat {
		fields.Fields[name] = structpb.NewStringValue(operator)
	}
	return fields
}
