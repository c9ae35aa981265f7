package page

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served serves a board for the test.
func served(t *testing.T, b *Board, do Actions) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(Handler(b, do, "games.example"))
	ctx, cancel := context.WithCancel(context.Background())
	srv.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	srv.Start()
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		cancel() // the streams
		srv.Close()
	})
	return srv
}

// ask makes a request and returns its status and body.
func ask(t *testing.T, srv *httptest.Server, method, path string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestThePageHasNoOutsideParts(t *testing.T) {
	srv := served(t, NewBoard(), nil)
	status, body := ask(t, srv, "GET", "/")
	assert.Equal(t, http.StatusOK, status)
	assert.NotContains(t, body, "/*page.", "its parts must be in it")
	assert.Empty(t, regexp.MustCompile(`(?:src|href)="[^d][^"]*"|@import|https?://[^w]`).FindAllString(body, -1))
	assert.Contains(t, body, "new EventSource")
}

func TestNothingElseIsServed(t *testing.T) {
	srv := served(t, NewBoard(), Actions{"kill": func(string) error { return nil }})
	for _, path := range []string{"/page.js", "/favicon.ico", "/do", "/../etc/passwd"} {
		status, _ := ask(t, srv, "GET", path)
		assert.Equal(t, http.StatusNotFound, status, path)
	}
	status, _ := ask(t, srv, "GET", "/do/kill/game-1")
	assert.Equal(t, http.StatusMethodNotAllowed, status, "a link must not kill")
}

func TestAPressReachesTheGame(t *testing.T) {
	var got []string
	srv := served(t, NewBoard(), Actions{
		"kill":      func(server string) error { got = append(got, "kill "+server); return nil },
		"stop-etcd": func(server string) error { got = append(got, "stop "+server); return nil },
	})
	for _, path := range []string{"/do/kill/game-1", "/do/stop-etcd"} {
		status, body := ask(t, srv, "POST", path)
		assert.Equal(t, http.StatusOK, status)
		assert.JSONEq(t, `{}`, body)
	}
	assert.Equal(t, []string{"kill game-1", "stop "}, got)
}

func TestARefusedPressSaysWhy(t *testing.T) {
	srv := served(t, NewBoard(), Actions{"kill": func(string) error { return errors.New(`game-1 is "dead"`) }})
	for _, tc := range []struct {
		path, want string
		status     int
	}{
		{"/do/kill/game-1", `{"error":"game-1 is \"dead\""}`, http.StatusConflict},
		{"/do/jump", `{"error":"there is no action \"jump\""}`, http.StatusNotFound},
	} {
		status, body := ask(t, srv, "POST", tc.path)
		assert.Equal(t, tc.status, status)
		assert.JSONEq(t, tc.want, body)
	}
}

func TestAPageOfAnotherOriginPressesNothing(t *testing.T) {
	pressed := 0
	srv := served(t, NewBoard(), Actions{"kill": func(string) error { pressed++; return nil }})
	for _, header := range [][]string{
		{"Origin", "http://elsewhere.example"},
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site", "Origin", "http://127.0.0.1:1"},
	} {
		status, body := ask(t, srv, "POST", "/do/kill/game-1", header...)
		assert.Equal(t, http.StatusForbidden, status, header)
		assert.JSONEq(t, `{"error":"only the page itself may do that"}`, body)
	}
	assert.Zero(t, pressed)
	status, _ := ask(t, srv, "POST", "/do/kill/game-1", "Origin", srv.URL, "Sec-Fetch-Site", "same-origin")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, 1, pressed)
}

// TestAnotherSitesNameForThisMachineOpensNothing: to a browser such a site is the page's
// own origin, for it asks the name that it came from.
func TestAnotherSitesNameForThisMachineOpensNothing(t *testing.T) {
	pressed := 0
	h := Handler(NewBoard(), Actions{"kill": func(string) error { pressed++; return nil }}, "games.example")
	for host, want := range map[string]int{
		"127.0.0.1:8080":           http.StatusOK,
		"[::1]:8080":               http.StatusOK,
		"[fe80::1%25eth0]":         http.StatusOK,
		"localhost:8080":           http.StatusOK,
		"localhost":                http.StatusOK,
		"mybox:8080":               http.StatusOK,
		"mybox.local":              http.StatusOK,
		"Games.example:8080":       http.StatusOK,
		"evil.example:8080":        http.StatusForbidden,
		"evil.example":             http.StatusForbidden,
		"127.0.0.1.evil.example":   http.StatusForbidden,
		"localhost.:8080":          http.StatusForbidden,
		"games.example.evil":       http.StatusForbidden,
		"evil.example:8080:8080":   http.StatusForbidden,
		"mybox.local.evil.example": http.StatusForbidden,
	} {
		for _, path := range []string{"POST /do/kill/game-1", "GET /"} {
			method, path, _ := strings.Cut(path, " ")
			r := httptest.NewRequest(method, path, nil)
			r.Host = host
			r.Header.Set("Origin", "http://"+host)
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			assert.Equal(t, want, w.Code, "%s %s at %s", method, path, host)
		}
	}
	assert.Equal(t, 8, pressed)
}

// watch reads a stream of frames until the test ends.
func watch(t *testing.T, srv *httptest.Server) (next func() Frame, end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/events", nil)
	require.NoError(t, err)
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	return func() (f Frame) {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				require.NoError(t, json.Unmarshal([]byte(data), &f))
				return f
			}
		}
		require.NoError(t, lines.Err())
		require.Fail(t, "the stream has ended")
		return f
	}, cancel
}

func TestAStreamBeginsWithAllAndGoesOnWithChanges(t *testing.T) {
	b := NewBoard()
	b.Server("game-1", func(s *Server) { s.State = Up })
	next, _ := watch(t, served(t, b, nil))
	f := next()
	assert.True(t, f.Whole)
	assert.Equal(t, []Server{{ID: "game-1", State: Up}}, f.Servers)
	b.Player("ada", func(p *Player) { p.At = "game-1" })
	assert.Equal(t, Frame{Players: []Player{{Name: "ada", At: "game-1"}}}, next())
}

func TestManyChangesAreFewFrames(t *testing.T) {
	b := NewBoard()
	next, _ := watch(t, served(t, b, nil))
	next()
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3000 {
			b.Server("game-1", func(s *Server) { s.Keyless++ })
			time.Sleep(50 * time.Microsecond)
		}
	}()
	frames := 0
	for last := int64(0); last < 3000; frames++ {
		f := next()
		require.Len(t, f.Servers, 1)
		require.Greater(t, f.Servers[0].Keyless, last)
		last = f.Servers[0].Keyless
	}
	<-done
	assert.LessOrEqual(t, frames, 2+int(time.Since(began)/pace))
}

// lastConn is a listener that has one connection to give.
type lastConn chan net.Conn

func (l lastConn) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (lastConn) Addr() net.Addr { return &net.TCPAddr{} }
func (lastConn) Close() error   { return nil }

func TestAReaderWhoTakesNothingIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, left := Handler(NewBoard(), nil, ""), make(chan time.Time, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			page.ServeHTTP(w, r)
			left <- time.Now()
		})}
		client, server := net.Pipe() // which buffers nothing
		defer client.Close()
		lis := make(lastConn, 1)
		lis <- server
		close(lis)
		go func() { _ = srv.Serve(lis) }()
		began := time.Now()
		_, err := io.WriteString(client, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, err)
		select {
		case at := <-left:
			assert.Equal(t, patience, at.Sub(began))
		case <-time.After(time.Hour):
			t.Error("it waits for ever")
		}
	})
}

func TestAReaderWhoComesBackGetsItAll(t *testing.T) {
	b := NewBoard()
	srv := served(t, b, nil)
	next, end := watch(t, srv)
	next()
	end()
	b.Etcd(EtcdStopped)
	next, _ = watch(t, srv)
	f := next()
	assert.True(t, f.Whole)
	assert.Equal(t, EtcdStopped, *f.Etcd)
}
