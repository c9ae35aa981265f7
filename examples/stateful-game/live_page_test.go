package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAServerKilledOnThePageGivesItsDotsToOtherIslands(t *testing.T) {
	p := openPage(t)
	victim, there := p.busiest()
	before, glided := p.dots(), p.glides()

	p.press("kill", victim)
	p.becomes(island(victim), "killed")
	p.eventually(counterJS("needed"), len(there), "each of them needs one move")
	p.eventually(fmt.Sprintf(`document.querySelectorAll(".dot[data-at=%s]").length`, victim), 0, "nobody is left there")
	p.settled()
	p.eventually(counterJS("told"), len(there), "and is told of it")
	for name, server := range p.dots() {
		if before[name] != victim {
			assert.Equal(t, before[name], server, "%s was elsewhere", name)
		}
	}
	assert.GreaterOrEqual(t, glided(), len(there))
	assert.Zero(t, p.counter("needless"))
	p.screenshot("killed")
}

func TestAServerDrainedOnThePageGivesAwayItsDotsAndTheirPoints(t *testing.T) {
	p := openPage(t)
	leaver, there := p.busiest()
	// Everyone has something to lose by now.
	p.eventually(`[...document.querySelectorAll(".dot")].filter((d) => !/: [1-9]\d* points/.test(d.title)).length`, 0, "players without points")

	p.press("drain", leaver)
	p.eventually(counterJS("needed"), len(there), "each of them needs one move")
	p.halfway()
	p.screenshot("moving") // README.md shows it
	p.goOn()
	p.becomes(island(leaver), "left")
	p.settled()
	assert.Zero(t, p.counter("needless"))
	p.eventually(`[...document.querySelectorAll("#notes li")].filter((n) => / points go along\./.test(n.textContent)).length`, 1, "notes of what they took along")
	assert.Zero(t, js[int](p, `[...document.querySelectorAll("#notes li")].filter((n) => / points are lost/.test(n.textContent)).length`))
	p.screenshot("drained")
}

func TestAServerRestartedOnThePageKeepsItsDots(t *testing.T) {
	p := openPage(t)
	id, there := p.busiest()
	before := p.dots()
	p.press("restart", id)
	p.eventually(counterJS("told"), len(there), "they are told that it has lost its memory")
	p.becomes(island(id), "up")
	p.settled()
	assert.Equal(t, before, p.dots())
	assert.Zero(t, p.counter("needed"))
	assert.Zero(t, p.counter("needless"))
}

func TestAnOutageOfEtcdOnThePageMovesNobody(t *testing.T) {
	p := openPage(t)
	before := p.dots()
	p.press("stop-etcd", "")
	p.becomes("#etcd", "stopped")

	// Not even those who have to find their server anew.
	p.press("reconnect", "")
	p.eventually(`[...document.querySelectorAll("#notes li")].filter((n) =>
		n.textContent.includes("Reconnected, to where they were:") && n.textContent.split(",").length - 1 === 9).length`, 1, "all nine are back")
	p.screenshot("etcd-stopped")
	p.press("start-etcd", "")
	p.becomes("#etcd", "running")
	calls := p.counter("calls")
	require.Eventually(t, func() bool { return p.counter("calls") > calls+50 }, deadline, pollTime)
	assert.Equal(t, before, p.dots())
	assert.Zero(t, p.counter("needed"))
	assert.Zero(t, p.counter("needless"))
	assert.Zero(t, p.counter("told"))
}

func TestServersAndPlayersAreAddedOnThePage(t *testing.T) {
	p := openPage(t)
	before := p.dots()
	p.press("add-server", "")
	p.becomes(island("game-4"), "up")
	for n := 10; ; n++ {
		p.press("add-player", "")
		p.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, n, "players")
		if js[int](p, `document.querySelectorAll(".dot[data-at=game-4]").length`) > 0 {
			break
		}
		require.Less(t, n, 30, "the new server gets nobody")
	}
	p.settled()
	after := p.dots()
	for name := range before {
		assert.Equal(t, before[name], after[name], "%s was there before", name)
	}
	assert.Zero(t, p.counter("needed"))
	assert.Zero(t, p.counter("needless"))
	p.screenshot("added")
}

func TestCallsWithoutAffinityAreSparksToAllIslandsOfThePage(t *testing.T) {
	p := openPage(t)
	js[bool](p, `(() => {
		window.lit = 0;
		new MutationObserver((all) => { for (const m of all) window.lit += m.addedNodes.length; })
			.observe(document.getElementById("sparks"), { childList: true });
		return true;
	})()`)
	require.Eventually(t, func() bool { return js[int](p, `window.lit`) >= 6 }, deadline, pollTime)
	p.eventually(`[...document.querySelectorAll(".facts")].filter((f) => / [1-9]\d* keyless/.test(f.textContent)).length`, 3, "islands that were reached")
}

func TestThePageSaysWhyAButtonHasToWait(t *testing.T) {
	p := openPage(t)
	p.press("kill", "game-1")
	p.becomes(island("game-1"), "killed")
	p.press("drain", "game-1")
	p.eventually(`Number(document.getElementById("says").textContent === "game-1 is killed: “Drain” has to wait.")`, 1, "why not")
}

func TestThePageFindsTheNextGameByItself(t *testing.T) {
	p := openPage(t)
	p.press("add-player", "")
	p.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 10, "players of the first game")
	p.press("kill", "game-1")
	p.becomes(island("game-1"), "killed")
	p.end()
	p.eventually(`Number(document.getElementById("says").textContent === "The game does not answer. Trying again…")`, 1, "what the page says")
	p.eventually(`Number(getComputedStyle(document.querySelector("main")).opacity < 0.6)`, 1, "what it shows fades")
	p.screenshot("stale")
	startLive(t, strings.Trim(strings.TrimPrefix(p.url, "http:"), "/"))
	p.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 9, "players of the next game")
	p.becomes(island("game-1"), "up")
	p.settled()
	assert.Empty(t, js[string](p, `document.getElementById("says").textContent`))
	p.eventually(`Number(getComputedStyle(document.querySelector("main")).opacity === "1")`, 1, "what it shows is true again")
}

func TestThePageTriesAgainWhenSomethingElseHasAnswered(t *testing.T) {
	p := openPage(t)
	p.end()
	addr := strings.Trim(strings.TrimPrefix(p.url, "http:"), "/")
	lis, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	asked := make(chan struct{}, 100)
	other := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway) // to which browsers do not come back by themselves
		asked <- struct{}{}
	})}
	go func() { _ = other.Serve(lis) }()
	for range 2 {
		select {
		case <-asked:
		case <-time.After(deadline):
			t.Error("the page has given up")
		}
	}
	require.NoError(t, other.Close())
	startLive(t, addr)
	p.eventually(`Number(document.body.matches(".stale"))`, 0, "a page that is out of date")
}

// seen makes a tab believe that it is in sight, or not.
func seen(yes bool) string {
	return fmt.Sprintf(`(() => {
		Object.defineProperty(document, "hidden", { configurable: true, value: %t });
		document.dispatchEvent(new Event("visibilitychange"));
		return true;
	})()`, !yes)
}

// TestTabsOutOfSightLeaveTheConnectionsToOthers: a browser has six to a host.
func TestTabsOutOfSightLeaveTheConnectionsToOthers(t *testing.T) {
	first := openPage(t)
	js[bool](first, seen(false))
	for n := range 7 {
		ctx, cancel := chromedp.NewContext(first.ctx)
		t.Cleanup(cancel)
		require.NoError(t, chromedp.Do(ctx)) // the tab lasts as long as ctx
		tab := &livePage{t: t, ctx: ctx}
		tab.do(chromedp.Navigate(first.url))
		tab.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 9+n, "players in the next tab")
		tab.press("add-player", "")
		tab.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 10+n, "players with a new one")
		js[bool](tab, seen(false))
	}
	assert.Equal(t, 9, js[int](first, `document.querySelectorAll(".dot").length`), "nobody looks")
	js[bool](first, seen(true))
	first.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 16, "all there are, once somebody does")
}

func TestThePageTellsWhatHasHappenedOnce(t *testing.T) {
	p := openPage(t)
	p.press("reconnect", "") // so that there are some notes
	p.eventually(`Number(/^Reconnected,.* The devices /.test(document.getElementById("latest").textContent))`, 1, "both in one go")
	p.do(chromedp.Navigate(p.url))
	p.eventually(`Number(/^Reconnected,(?!.* The devices )/.test(document.getElementById("latest").textContent))`, 1, "a page that comes later tells the last alone")
	js[bool](p, `(() => {
		window.told = [];
		new MutationObserver(() => told.push(document.getElementById("latest").textContent))
			.observe(document.getElementById("latest"), { childList: true });
		return true;
	})()`)
	victim, there := p.busiest()
	p.press("kill", victim)
	p.eventually(counterJS("needed"), len(there), "each of them needs one move")
	p.eventually(`Number(/Needed moves:/.test(told.at(-1)))`, 1, "why they have moved")
	assert.LessOrEqual(t, len(js[[]string](p, `told`)), 3, "not once for each of them")
	assert.Empty(t, js[[]string](p, `[...document.querySelectorAll("#notes, #notes *, #dots *")]
		.filter((e) => e.ariaLive || /log|status|alert/.test(e.role)).map((e) => e.outerHTML)`), "told twice")
}

func TestThePageSaysHowManyWait(t *testing.T) {
	p := openPage(t)
	for _, id := range []string{"game-1", "game-2", "game-3"} {
		p.press("kill", id)
	}
	p.eventually(`[...document.querySelectorAll(".island .state")].reduce((sum, s) => sum + Number(s.textContent.match(/^killed, (\d) waiting$/)?.[1] || 0), 0)`, 9, "players who wait")
	p.eventually(`document.querySelectorAll(".dot[data-state=waiting]").length`, 9, "dots that show it")
	assert.Empty(t, js[[]string](p, `[...document.querySelectorAll(".dot")].filter((d) => getComputedStyle(d).opacity < 1).map((d) => d.outerHTML)`), "letters that cannot be read")
	p.screenshot("waiting")
}

func TestAServerThatIsAddedOnThePageShiftsNothing(t *testing.T) {
	p := openPage(t)
	const where = `[...document.querySelectorAll(".island:nth-child(-n+3) button, .bar button")].map((b) => b.getBoundingClientRect().top + scrollY)`
	before := js[[]float64](p, where)
	p.press("add-server", "")
	p.becomes(island("game-4"), "up")
	assert.Equal(t, before, js[[]float64](p, where))
}

func TestThePageSaysWhatANeededMoveIs(t *testing.T) {
	p := openPage(t)
	assert.Contains(t, js[string](p, `document.querySelector(".title p").textContent.replace(/\s+/g, " ")`),
		fmt.Sprintf("A move is needed if the server drains or is dead for %v, else needless.", reconnectWindow))
}

func TestThePageFitsAPhone(t *testing.T) {
	p := openPage(t, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(2)))
	assert.Equal(t, 360, js[int](p, `document.documentElement.scrollWidth`), "the page must not scroll sideways")
	assert.Empty(t, js[[]string](p, `[...document.querySelectorAll("button, .tile, .island, .dot, #notes")].filter((e) => {
		const r = e.getBoundingClientRect();
		return r.left < 0 || r.right > 360;
	}).map((e) => e.outerHTML)`), "beyond the edge")
	assert.Empty(t, js[[]string](p, `[...document.querySelectorAll("button")].filter((e) => {
		const r = e.getBoundingClientRect();
		return r.width < 44 || r.height < 44 || e.scrollWidth > e.clientWidth;
	}).map((e) => e.outerHTML)`), "too small for a thumb, or for its label")
	assert.Empty(t, js[[]string](p, `(() => {
		events.close();
		showTotals({ needed: 9999, needless: 123, told: 99_999, calls: 123_456, failed: 1_234_567 });
		return [...document.querySelectorAll(".tile dd")].filter((e) => {
			const range = document.createRange();
			range.selectNodeContents(e);
			return range.getBoundingClientRect().right > e.parentElement.getBoundingClientRect().right - 2;
		}).map((e) => e.textContent);
	})()`), "counters that do not fit after a while")
	js[bool](p, `(listen(), true)`)
	p.press("kill", "game-1")
	p.becomes(island("game-1"), "killed")
	p.eventually(`Number(/^game-1 (is|was) killed\./.test(document.getElementById("latest").textContent))`, 1, "what has just happened")
	js[bool](p, `(scrollTo(0, document.body.scrollHeight), true)`)
	assert.Empty(t, js[[]string](p, `[...document.querySelectorAll("#latest, .tile")].filter((e) => {
		const r = e.getBoundingClientRect();
		return r.height < 20 || r.top < 0 || r.bottom > innerHeight;
	}).map((e) => e.outerHTML)`), "out of sight, far down the page")
	p.screenshot("phone")
}

func TestThePageIsReadableInDarkAndInLight(t *testing.T) {
	p := openPage(t)
	paper := make(map[string]string)
	for _, scheme := range []string{"light", "dark"} {
		p.do(sees("prefers-color-scheme", scheme))
		p.eventually(`document.getAnimations().filter((a) => a instanceof CSSTransition).length`, 0, "colours that still change")
		paper[scheme] = js[string](p, `getComputedStyle(document.body).backgroundColor`)
		assert.Empty(t, js[[]string](p, lowContrast), scheme)
		p.screenshot(scheme)
	}
	assert.NotEqual(t, paper["light"], paper["dark"])
}

// lowContrast is the text of the page that WCAG calls hard to read, with the colours, and
// the buttons whose edges are hard to see.
const lowContrast = `(() => {
	const rgb = (c) => c.match(/[\d.]+/g).map(Number);
	const light = (c) => rgb(c).slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const under = (e) => {
		for (; e; e = e.parentElement) {
			const c = getComputedStyle(e).backgroundColor;
			if (rgb(c).length === 3 || rgb(c)[3] === 1) return c;
		}
	};
	const bad = [];
	for (const e of document.querySelectorAll("h1, h2, p, small, b, dt, dd, button, .id, .state, .facts, .dot, .pier span, #notes span, #notes time")) {
		if (!e.textContent || e.matches("[aria-disabled=true]")) continue;
		const ink = getComputedStyle(e).color, paper = under(e);
		const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
		const edge = light(getComputedStyle(e).borderTopColor), [c, d] = [edge, light(paper)].sort((x, y) => y - x);
		if (e.matches("button") && (c + 0.05) / (d + 0.05) < 3) bad.push("edge of " + e.textContent);
		if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([e.className || e.tagName, e.textContent.trim().slice(0, 20), ink, paper].join(" "));
	}
	return bad;
})()`

func TestThePageIsUsableByKeyboard(t *testing.T) {
	p := openPage(t)
	var way []string
	for range 30 {
		p.do(chromedp.KeyEvent(kb.Tab))
		focus := js[string](p, `document.activeElement.getAttribute("aria-label") || document.activeElement.textContent`)
		way = append(way, focus)
		assert.Equal(t, "solid", js[string](p, `getComputedStyle(document.activeElement).outlineStyle`), "nobody sees that %s has the focus", focus)
		if focus == "Kill game-2" {
			break
		}
	}
	assert.Equal(t, []string{"Add server", "Add player", "Reconnect players", "Stop etcd",
		"Drain game-1", "Kill game-1", "Restart game-1", "Drain game-2", "Kill game-2"}, way)
	p.do(chromedp.KeyEvent(kb.Enter))
	p.becomes(island("game-2"), "killed")
	assert.Equal(t, "Kill game-2", js[string](p, `document.activeElement.getAttribute("aria-label")`), "the focus must stay")
	p.do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(" "))
	p.becomes(island("game-2"), "up")
}

func TestThePageStandsStillForThoseWhoAskForIt(t *testing.T) {
	p := openPage(t, sees("prefers-reduced-motion", "reduce"))
	assert.Equal(t, "0s", js[string](p, `getComputedStyle(document.querySelector(".dot")).transitionDuration`))
	calls := p.counter("calls")
	require.Eventually(t, func() bool { return p.counter("calls") > calls+20 }, deadline, pollTime)
	assert.Zero(t, js[int](p, `document.getElementById("sparks").childElementCount`))
}
