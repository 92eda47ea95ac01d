package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The keys of design: scripts rely on them. Keys may be added, at the end.
func TestContractKeys(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    any
		want string
	}{
		{"status", Status{}, "node boot_id engine tunnels networks problems drain key_memory"},
		{"tunnel", Tunnel{}, "name state session addresses gateway path endpoint interface mtu key_epoch resumes last_handshake_at rx_bytes tx_bytes since " +
			"routes refused_routes advertise data_alive last_error enabled expires_at held lifetime_ms refresher refresh_at serial leaving"},
		{"session", Session{}, "session node user network state addresses path endpoint key_epoch resumes last_handshake_at rx_bytes tx_bytes since expires_at quarantined lifetime_ms refresher refresh_at serial"},
		{"event", Event{}, "time event session node network cause request from rx_bytes tx_bytes"},
	} {
		typ := reflect.TypeOf(tt.v)
		var keys []string
		for i := range typ.NumField() {
			keys = append(keys, typ.Field(i).Tag.Get("json"))
		}
		if got := strings.Join(keys, " "); got != tt.want {
			t.Errorf("keys of %s = %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Whatever the manager leaves out, the JSON says [] for a list and null for
// what is unknown.
func TestListsAreNeverNull(t *testing.T) {
	for _, tt := range []struct {
		v    any
		want string
	}{
		{[]Session(nil), `[]`},
		{Status{}, `{"node":"","boot_id":"","engine":"","tunnels":[],"networks":[],"problems":[],"drain":null,"key_memory":{"locked":false,"swap":null,"why":null,"mend":null}}`},
		{[]Node{{Name: "a"}}, `[{"name":"a","id":null,"state":"","networks":[],"advertise":[],"sessions":0,"expires_at":null,"rate_up":null,"rate_down":null,"direction":null}]`},
		{JoinReply{Tunnels: []JoinedTunnel{{}}}, `{"node":"","gateway":"","tunnels":[{"name":"","file":"","routes":[]}]}`},
		{Tunnel{}, `{"name":"","state":"","session":null,"addresses":[],"gateway":null,"path":null,"endpoint":null,"interface":null,` +
			`"mtu":null,"key_epoch":null,"resumes":0,"last_handshake_at":null,"rx_bytes":0,"tx_bytes":0,"since":null,` +
			`"routes":[],"refused_routes":[],"advertise":[],"data_alive":null,"last_error":null,"enabled":false,"expires_at":null,"held":false,"lifetime_ms":null,"refresher":null,"refresh_at":null,"serial":null,"leaving":null}`},
	} {
		b, err := json.Marshal(withLists(tt.v))
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != tt.want {
			t.Errorf("withLists(%T) = %s, want %s", tt.v, b, tt.want)
		}
	}
	detail, _ := json.Marshal(withLists(SessionDetail{}))
	for _, want := range []string{`"addresses":[]`, `"advertise":[]`, `"history":[]`} {
		if !strings.Contains(string(detail), want) {
			t.Errorf("withLists(SessionDetail{}) = %s, want %s in it", detail, want)
		}
	}
}

func TestWithListsLeavesTheRestAlone(t *testing.T) {
	now := time.Now()
	in := Status{Node: "a", Tunnels: []Tunnel{{Name: "t", Since: &now}}}
	if out := withLists(in); out.Node != "a" || out.Tunnels[0].Name != "t" || !out.Tunnels[0].Since.Equal(now) {
		t.Errorf("withLists(%+v) = %+v", in, out)
	}
}
