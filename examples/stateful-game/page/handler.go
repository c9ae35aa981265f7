package page

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// The page is one document without outside parts; its source is three files.
var (
	//go:embed page.html
	html []byte
	//go:embed page.css
	css []byte
	//go:embed page.js
	js []byte
)

// Actions are what the buttons do, by name. Those that are about a server get its id,
// "" if none was given. What comes of an action shows on the board: it returns when it
// has begun, or why it cannot.
type Actions map[string]func(server string) error

// Handler serves the page at /, what changes on the board at /events, and the actions
// at POST /do/{action} and /do/{action}/{server}. It refuses actions that a page of
// another origin asks for, and whatever is asked of a name that can belong to somebody
// else: see [trusted]. host is a name that is trusted as well, "" if there is none.
func Handler(board *Board, actions Actions, host string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", document())
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { stream(w, r, board) })
	do := func(w http.ResponseWriter, r *http.Request) {
		name, server := r.PathValue("action"), r.PathValue("server")
		action, ok := actions[name]
		if !ok {
			answer(w, http.StatusNotFound, fmt.Sprintf("there is no action %q", name))
			return
		}
		if err := action(server); err != nil {
			answer(w, http.StatusConflict, err.Error())
			return
		}
		answer(w, http.StatusOK, "")
	}
	mux.HandleFunc("POST /do/{action}", do)
	mux.HandleFunc("POST /do/{action}/{server}", do)

	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusForbidden, "only the page itself may do that")
	}))
	return named(own.Handler(mux), host)
}

// named refuses requests to names that are not trusted.
func named(next http.Handler, host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := hostname(r.Host); !trusted(name) && !strings.EqualFold(name, host) {
			answer(w, http.StatusForbidden, fmt.Sprintf("this page is not at %q: open it by an IP address or as localhost", name))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostname is hostport without the port, and without the brackets of an IPv6 address.
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// trusted reports whether name cannot be in the public DNS. A site that can have its own
// name resolved to this machine (DNS rebinding) is of the same origin as the page then,
// so that browsers let it press the buttons.
func trusted(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil || !strings.Contains(name, ".") ||
		strings.HasSuffix(name, ".local") || strings.HasSuffix(name, ".localhost")
}

func document() http.HandlerFunc {
	doc := bytes.Replace(html, []byte("/*page.css*/"), css, 1)
	doc = bytes.Replace(doc, []byte("/*page.js*/"), js, 1)
	// Nothing but what is in the document may run or be loaded.
	policy := fmt.Sprintf("default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "+
		"form-action 'none'; frame-ancestors 'none'; style-src '%s'; script-src '%s'", hash(css), hash(js))
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(doc)
	}
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func answer(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Error string `json:"error,omitempty"`
	}{message})
}

const (
	// pace is the time between two frames at least. What changes in between is one.
	pace = 100 * time.Millisecond

	// heartbeat is the time between two frames at most, so that a reader who has gone
	// is noticed.
	heartbeat = 15 * time.Second

	// patience is how long a reader may take for a frame.
	patience = 5 * time.Second
)

// stream sends the board and then what changes, as server-sent events, until the reader
// goes or the server ends.
func stream(w http.ResponseWriter, r *http.Request, board *Board) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	send := func(line string) bool {
		// Not all writers have deadlines; those of servers do.
		_ = out.SetWriteDeadline(time.Now().Add(patience))
		_, err := w.Write([]byte(line))
		return err == nil && out.Flush() == nil
	}
	// A page whose stream has ended is back after a second.
	if !send("retry: 1000\n\n") {
		return
	}
	for since := int64(0); ; {
		frame, now, changed := board.Since(since)
		if now > since || since == 0 {
			data, err := json.Marshal(frame)
			if err != nil || !send("data: "+string(data)+"\n\n") {
				return
			}
			since = now
		} else if !send(":\n\n") {
			return
		}
		if !sleep(r, pace, nil) || !sleep(r, heartbeat, changed) {
			return
		}
	}
}

// sleep waits for d or until it is woken, and reports whether the request still stands.
func sleep(r *http.Request, d time.Duration, woken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return false
	case <-timer.C:
	case <-woken:
	}
	return true
}
