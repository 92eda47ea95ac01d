package config

// nearest returns the candidate that key was probably meant to be, or "": at
// most a third of it may be mistyped.
func nearest(key string, candidates []string) string {
	best, least := "", max(1, len(key)/3)+1
	for _, c := range candidates {
		if d := distance(key, c); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance is Levenshtein's: how many letters to insert, delete or replace.
func distance(a, b string) int {
	if len(a) > 64 { // no key of ours is near to that
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
