package main

import (
	"fmt"
	"strings"
	"testing"

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
	p.becomes(island(leaver), "left")
	p.eventually(counterJS("needed"), len(there), "each of them needs one move")
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
	startLive(t, strings.Trim(strings.TrimPrefix(p.url, "http:"), "/"))
	p.eventually(`document.querySelectorAll(".dot[data-at^=game]").length`, 9, "players of the next game")
	p.becomes(island("game-1"), "up")
	p.settled()
	assert.Empty(t, js[string](p, `document.getElementById("says").textContent`))
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
	p.press("kill", "game-1")
	p.becomes(island("game-1"), "killed")
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

// lowContrast is the text of the page that WCAG calls hard to read, with the colours.
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
