/* Arguments and results in wide vector registers: eight of WIDTH bytes. */
typedef long vector __attribute__((vector_size(WIDTH)));

#define PLAIN __attribute__((noinline, noclone, patchable_function_entry(0)))

__attribute__((noinline, noclone, noipa)) vector
mix(vector a, vector b, vector c, vector d, vector e, vector f, vector g, vector h)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}

/* No instruction of this function shows the width of its arguments. */
__attribute__((noinline, noclone, noipa)) vector
pass(vector a, vector b, vector c, vector d, vector e, vector f, vector g, vector h)
{
	return mix(a, b, c, d, e, f, g, h);
}

PLAIN long check_vectors(void)
{
	vector v[8];
	for (int n = 0; n < 8; n++)
		for (int i = 0; i < WIDTH / 8; i++)
			v[n][i] = 1000 * n + i + 1;
	vector got = pass(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
	for (int i = 0; i < WIDTH / 8; i++)
		if (got[i] != 1000 * (2 * 1 + 3 * 2 + 4 * 3 + 5 * 4 + 6 * 5 + 7 * 6 + 8 * 7) + 36 * (i + 1))
			return __LINE__;
	return 0;
}
