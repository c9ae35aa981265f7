package homing_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/experimental/stats"
)

func TestReadmeSnippetsAreCompiledCode(t *testing.T) {
	code := flat(read(t, "example_test.go"))
	snippets := blocks(read(t, "README.md"), "go")
	require.NotEmpty(t, snippets)
	for _, s := range snippets {
		require.Contains(t, code, flat(s))
	}
}

func TestReadmeListsAllMetrics(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	n := 0
	for name := range stats.DefaultMetrics.Metrics() {
		if !strings.HasPrefix(name, "homing.") {
			continue
		}
		n++
		d := stats.DescriptorForMetric(name)
		require.Contains(t, string(readme), fmt.Sprintf("| `%s` | `%s` |", name, d.Unit))
	}
	require.Equal(t, n, strings.Count(string(readme), "\n| `homing."))
}

func TestSnippetsOfOtherDocumentsAreCompiledCode(t *testing.T) {
	for doc, dirs := range map[string][]string{
		"docs/WORKS-WITH.md":        {"e2e", "otelaffinity"},
		"docs/kubernetes/README.md": {"e2e/cmd/pod"},
		"docs/guides/README.md":     {"e2e/guides/discovery/both"},
	} {
		var code strings.Builder
		for _, dir := range dirs {
			code.WriteString(goFiles(t, dir))
		}
		snippets := blocks(read(t, doc), "go")
		require.NotEmpty(t, snippets)
		for _, s := range snippets {
			require.Contains(t, code.String(), flat(s), doc)
		}
	}
}

// The documents name the tests that hold what they say.
func TestTestsThatDocumentsNameExist(t *testing.T) {
	var code strings.Builder
	for _, dir := range []string{"affinity", "e2e", "e2e/cmd/pod", "otelaffinity", "stickybalancer"} {
		code.WriteString(goFiles(t, dir))
	}
	for _, doc := range []string{"docs/WORKS-WITH.md", "docs/kubernetes/README.md", "docs/FAQ.md", "README.md"} {
		for _, name := range regexp.MustCompile("`(Test\\w+)").FindAllStringSubmatch(read(t, doc), -1) {
			require.True(t, strings.Contains(code.String(), "func "+name[1]), "%s names %s", doc, name[1])
		}
	}
}

func TestSnippetsOfManifestsAreInTheFiles(t *testing.T) {
	var all strings.Builder
	files, err := filepath.Glob("docs/kubernetes/*.yaml")
	require.NoError(t, err)
	for _, f := range files {
		all.WriteString(flat(read(t, f)) + "\n")
	}
	snippets := blocks(read(t, "docs/kubernetes/README.md"), "yaml")
	require.NotEmpty(t, snippets)
	for _, s := range snippets {
		require.Contains(t, all.String(), flat(s))
	}
}

// A guide's Go is of its code before or after; in what it shows as a difference, the lines
// that go, with those that stay, are of the code before, and those that come of that after.
func TestGuideSnippetsAreCompiledCode(t *testing.T) {
	dirs, err := filepath.Glob("e2e/guides/*/before")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		name := filepath.Base(filepath.Dir(dir))
		t.Run(name, func(t *testing.T) {
			before, after := goFiles(t, dir), goFiles(t, filepath.Join(dir, "../after"))
			guide := read(t, filepath.Join("docs/guides", name+".md"))
			snippets, diffs := blocks(guide, "go"), blocks(guide, "diff")
			require.NotEmpty(t, snippets)
			for _, s := range snippets {
				if s = flat(s); !strings.Contains(before, s) {
					require.Contains(t, after, s)
				}
			}
			for _, d := range diffs {
				require.Contains(t, before, flat(side(d, '-')))
				require.Contains(t, after, flat(side(d, '+')))
			}
		})
	}
	guides, err := filepath.Glob("docs/guides/*.md")
	require.NoError(t, err)
	require.Len(t, guides, len(dirs)+1, "each guide has its code; and there is a README")
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	var docs []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		some, err := filepath.Glob(pattern)
		require.NoError(t, err)
		docs = append(docs, some...)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, doc := range docs {
		for _, m := range link.FindAllStringSubmatch(read(t, doc), -1) {
			_, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1]))
			require.NoError(t, err, "%s links to %s", doc, m[1])
		}
	}
}

func TestLinksWithinTheReadmeLeadToHeadings(t *testing.T) {
	readme := read(t, "README.md")
	headings := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(readme, -1) {
		headings[strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(readme, -1)
	require.NotEmpty(t, links)
	for _, m := range links {
		require.Contains(t, headings, m[1])
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// goFiles returns the code in dir, flat.
func goFiles(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var code strings.Builder
	for _, f := range files {
		code.WriteString(flat(read(t, f)) + "\n")
	}
	return code.String()
}

// blocks returns the fenced blocks of a language in text.
func blocks(text, language string) (found []string) {
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// side returns one side of a difference: the lines with that mark, and those with none.
func side(diff string, mark byte) string {
	var lines []string
	for line := range strings.Lines(diff) {
		if line[0] == mark || line[0] == ' ' {
			lines = append(lines, line[1:])
		}
	}
	return strings.Join(lines, "")
}

// flat removes the indentation, which differs.
func flat(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}
