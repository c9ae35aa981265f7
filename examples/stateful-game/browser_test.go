package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// browserNames are looked for in this order.
var browserNames = []string{
	"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
	"headless-shell", "chrome-headless-shell", "chromium-headless-shell", "microsoft-edge",
	"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
	"/Applications/Chromium.app/Contents/MacOS/Chromium",
}

// findBrowser returns a browser's path, or skips the test.
func findBrowser(t *testing.T) string {
	t.Helper()
	if named := os.Getenv("CHROME"); named != "" {
		path, err := exec.LookPath(named)
		require.NoError(t, err, "CHROME names no browser")
		return path
	}
	for _, name := range browserNames {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("NO BROWSER IS INSTALLED, so nobody has looked at the page. " +
		"Install Chromium (on Debian: apt-get install chromium) or say where one is by CHROME=/path/to/chrome")
	return ""
}

// step is something that is done in a browser.
type step = chromedp.Action[chromedp.Void]

// livePage is the page of a game of its own, in a browser of its own.
type livePage struct {
	t   *testing.T
	ctx context.Context // the tab's
	url string
	end func() // of the game
}

// openPage starts a game and looks at it. Both end with the test.
func openPage(t *testing.T, before ...step) *livePage {
	t.Helper()
	browser := findBrowser(t)
	p := &livePage{t: t}
	p.url, p.end = startLive(t, "127.0.0.1:0")

	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // which root cannot have, and our own page does not need
		chromedp.DisableGPU,
		chromedp.WindowSize(1280, 900),
		chromedp.WSURLReadTimeout(deadline))
	actx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancelTab := chromedp.NewContext(actx)
	t.Cleanup(func() {
		if t.Failed() {
			p.screenshot("failed")
		}
		_ = chromedp.Cancel(ctx) // it closes the browser and waits for that
		cancelTab()
	})
	p.ctx = ctx
	require.NoError(t, chromedp.Do(ctx)) // starts the browser, which lasts as long as ctx
	p.do(before...)
	p.do(chromedp.Navigate(p.url))
	p.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 9, "nine players at first")
	p.settled()
	return p
}

// startLive starts the program with -http and returns where the page is. It is ended by
// end, or with the test.
func startLive(t *testing.T, addr string) (url string, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan struct{})
	var stderr strings.Builder
	var code int
	go func() {
		defer close(done)
		defer w.Close()
		code = run(ctx, []string{"-http", addr}, w, &stderr)
	}()
	end = func() {
		cancel()
		select {
		case <-done:
			require.Equal(t, exitOK, code, stderr.String())
		case <-time.After(deadline):
			t.Error("the game does not end")
		}
	}
	t.Cleanup(end)
	lines := bufio.NewReader(r)
	line, err := lines.ReadString('\n')
	require.NoError(t, err, "%s", &stderr)
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	url, ok := strings.CutPrefix(strings.TrimSuffix(line, ", until Ctrl-C\n"), "the game is at ")
	require.True(t, ok, line)
	return url, end
}

// do does what must not take for ever.
func (p *livePage) do(actions ...step) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, deadline)
	defer cancel()
	require.NoError(p.t, chromedp.Do(ctx, actions...))
}

// js evaluates an expression in the page.
func js[T any](p *livePage, expression string) (v T) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, deadline)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	require.NoError(p.t, err, expression)
	return v
}

// eventually waits until a number in the page is what it should be.
func (p *livePage) eventually(expression string, want int, what string) {
	p.t.Helper()
	var got int
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got = js[int](p, expression); got == want {
			return
		}
	}
	require.Equal(p.t, want, got, "%s: %s", what, expression)
}

// becomes waits until an island or a lighthouse is in some state.
func (p *livePage) becomes(selector, state string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf(`document.querySelectorAll('%s[data-state=%s]').length`, selector, state), 1, selector+" "+state)
}

func island(id string) string { return "[data-server=" + id + "].island" }

// press presses a button with the mouse: of the server if there is one.
func (p *livePage) press(action, server string) {
	p.t.Helper()
	selector := fmt.Sprintf("button[data-do=%s]", action)
	if server != "" {
		selector += fmt.Sprintf("[data-server=%s]", server)
	}
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// settled waits until no dot glides, and then until each is seen on the land of the
// island that it says it is on.
func (p *livePage) settled() {
	p.t.Helper()
	p.eventually(`[...document.querySelectorAll(".dot")].filter((d) => {
		const land = document.querySelector('[data-server="' + d.dataset.at + '"] .land');
		if (!land) return true;
		const r = d.getBoundingClientRect(), l = land.getBoundingClientRect();
		const x = r.left + r.width / 2, y = r.top + r.height / 2;
		return x < l.left || x > l.right || y < l.top || y > l.bottom;
	}).length + document.getAnimations().filter((a) => a instanceof CSSTransition && a.effect.target.matches(".dot")).length`,
		0, "dots that are not on their islands")
}

// dots returns where each player is seen.
func (p *livePage) dots() map[string]string {
	p.t.Helper()
	return js[map[string]string](p, `Object.fromEntries([...document.querySelectorAll(".dot")].map((d) => [d.dataset.player, d.dataset.at]))`)
}

// busiest returns the island with the most dots, and who is there.
func (p *livePage) busiest() (id string, there []string) {
	p.t.Helper()
	at := make(map[string][]string)
	for name, server := range p.dots() {
		at[server] = append(at[server], name)
		if len(at[server]) > len(there) {
			id, there = server, at[server]
		}
	}
	return id, there
}

// counter returns what a tile says.
func (p *livePage) counter(name string) int {
	p.t.Helper()
	return js[int](p, counterJS(name))
}

func counterJS(name string) string {
	return fmt.Sprintf(`Number(document.getElementById(%q).textContent.replaceAll(",", ""))`, name)
}

// glides counts, from now on, the dots that have glided somewhere.
func (p *livePage) glides() (count func() int) {
	p.t.Helper()
	js[bool](p, `(() => {
		window.glided = new Set();
		document.addEventListener("transitionend", (e) => {
			if (e.propertyName === "transform" && e.target.matches(".dot")) window.glided.add(e.target.dataset.player);
		});
		return true;
	})()`)
	return func() int { return js[int](p, `window.glided.size`) }
}

// halfway holds the dots that glide in the middle of their ways, until goOn.
func (p *livePage) halfway() {
	p.t.Helper()
	js[int](p, `(window.held = document.getAnimations().filter((a) => a instanceof CSSTransition && a.effect.target.matches(".dot")))
		.map((a) => { a.pause(); a.currentTime = 480; }).length`)
}

func (p *livePage) goOn() {
	p.t.Helper()
	js[int](p, `window.held.map((a) => a.play()).length`)
}

// sees makes the page believe in some media features.
func sees(features ...string) step {
	var media emulation.SetEmulatedMediaParams
	for i := 0; i+1 < len(features); i += 2 {
		media.Features = append(media.Features, &emulation.MediaFeature{Name: features[i], Value: features[i+1]})
	}
	return func(ctx context.Context, tab *chromedp.Target) (chromedp.Void, error) {
		return cdp.Call(ctx, tab, emulation.SetEmulatedMedia, media)
	}
}

// screenshot keeps a picture of the whole page: see go test -artifacts.
func (p *livePage) screenshot(name string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, deadline)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Errorf("screenshot %s: %v", name, err)
		return
	}
	require.NoError(p.t, os.WriteFile(filepath.Join(p.t.ArtifactDir(), name+".png"), png, 0o644))
}
