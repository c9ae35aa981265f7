package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// A plot is one number over the count of servers, homing's and its rivals', on two
// logarithmic axes.
type plot struct {
	file, title, unit string
	name              string // of the benchmark, with %d for the servers and %s for the line
	lines             []string
}

var plots = []plot{
	{"bringup", "Bring-up of N endpoints, ns", "ns/op", "BringUp/n=%d/policy=%s", []string{ours, robin, "weighted_round_robin", "least_request", "recipe"}},
	{"pick", "A pick by another key each time, ns", "ns/op", "Lookup/n=%d/way=%s", []string{"homing", robin, "go-rendezvous", "go-zero", "authzed", "maglev-64k"}},
	{"balance", "Busiest server over the mean, by keys", "busiest/mean", "HomesCompared/n=%d/way=%s", []string{"homing", "ring_hash", "ring_hash-64k", "maglev-64k", "go-zero"}},
}

// colours read on white and on black.
var colours = []string{"#2f81f7", "#8b949e", "#d29922", "#db61a2", "#3fb950", "#a371f7"}

type point struct{ x, y float64 }

func (p plot) points(s samples, line string) (pts []point) {
	for _, n := range []int{3, 10, 100, 1000, 10_000} {
		if y := median(s.of(fmt.Sprintf(p.name, n, line), p.unit)); y > 0 {
			pts = append(pts, point{math.Log10(float64(n)), math.Log10(y)})
		}
	}
	return pts
}

func writePlots(dir string, s samples) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range plots {
		if err := os.WriteFile(filepath.Join(dir, p.file+".svg"), []byte(p.svg(s)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p plot) svg(s samples) string {
	const left, top, width, height = 60.0, 40.0, 380.0, 240.0
	low, high := math.Inf(1), math.Inf(-1)
	for _, l := range p.lines {
		for _, pt := range p.points(s, l) {
			low, high = min(low, pt.y), max(high, pt.y)
		}
	}
	low, high = math.Floor(low), max(math.Ceil(high), math.Floor(low)+1)
	x := func(v float64) float64 { return left + width*v/4 }
	y := func(v float64) float64 { return top + height*(high-v)/(high-low) }

	var w strings.Builder
	w.WriteString(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 320" font-family="sans-serif" font-size="12">` + "\n" +
		"<style>text{fill:#57606a}.a{stroke:#8b949e;stroke-opacity:.35}@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}</style>\n")
	fmt.Fprintf(&w, `<text x="%g" y="20" font-size="14">%s</text>`+"\n", left, p.title)
	for v := 0.0; v <= 4; v++ {
		fmt.Fprintf(&w, `<line class="a" x1="%[1]g" x2="%[1]g" y1="%[2]g" y2="%[3]g"/><text x="%[1]g" y="%[4]g" text-anchor="middle">%[5]g</text>`+"\n",
			x(v), top, top+height, top+height+18, math.Pow(10, v))
	}
	if !math.IsInf(low, 0) {
		for v := low; v <= high; v++ {
			fmt.Fprintf(&w, `<line class="a" x1="%[1]g" x2="%[2]g" y1="%[3]g" y2="%[3]g"/><text x="%[4]g" y="%[5]g" text-anchor="end">%[6]g</text>`+"\n",
				left, left+width, y(v), left-6, y(v)+4, math.Pow(10, v))
		}
	}
	for i, l := range p.lines {
		pts := p.points(s, l)
		if len(pts) == 0 {
			continue
		}
		fmt.Fprintf(&w, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colours[i])
		for _, pt := range pts {
			fmt.Fprintf(&w, "%.1f,%.1f ", x(pt.x), y(pt.y))
		}
		w.WriteString(`"/>` + "\n")
		for _, pt := range pts {
			fmt.Fprintf(&w, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(pt.x), y(pt.y), colours[i])
		}
		fmt.Fprintf(&w, `<text x="%g" y="%d" style="fill:%s">%s</text>`+"\n", left+width+15, 52+18*i, colours[i], l)
	}
	w.WriteString("</svg>\n")
	return w.String()
}
