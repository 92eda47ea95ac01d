package api

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// clientEnv makes the test binary a client of the socket it names; see
// TestPeerCredentials.
const clientEnv = "TUNNELD_API_TEST_CLIENT"

func TestMain(m *testing.M) {
	if path := os.Getenv(clientEnv); path != "" {
		os.Exit(clientMain(path))
	}
	goleak.VerifyTestMain(m)
}
