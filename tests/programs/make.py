"""make -j2 of a C project, in mid build: jobs, the job server's pipe, compilers and assemblers with temporary files."""
FILES = 60
os.makedirs(TMP + "/project")
os.chdir(TMP + "/project")
for i in range(FILES):
    # Templates by the preprocessor: enough work for a compiler to be caught at.
    cases = "".join("case %d: return x * %d + other_%d(x ^ %d);" % (k, k + i, (i + k) % FILES, k) for k in range(60))
    prototypes = "".join("int other_%d(int);" % k for k in range(FILES))
    write("part_%d.c" % i, "%s int part_%d(int x) { switch (x %% 60) { %s } return %d; } int other_%d(int x) { return x + %d; }\n"
          % (prototypes, i, cases, i, i, i))
calls = " + ".join("part_%d(n)" % i for i in range(FILES))
write("main.c", "#include <stdio.h>\n%s int main(void) { unsigned sum = 0; for (int n = 0; n < 100; n++) sum += %s; printf(\"%%u\\n\", sum); }\n"
      % ("".join("int part_%d(int);" % i for i in range(FILES)), calls))
write("Makefile", "OBJECTS = main.o " + " ".join("part_%d.o" % i for i in range(FILES)) + """
CFLAGS = -O2 -fwrapv
program: $(OBJECTS)
\t$(CC) -o $@ $(OBJECTS)
""")


def built():
    return len([name for name in os.listdir(".") if name.endswith(".o")])


def expected():
    def part(i, x):
        k = x % 60
        return x * (k + i) + (x ^ k) + (i + k) % FILES
    return sum(part(i, n) for i in range(FILES) for n in range(100)) % 2**32


log = open("log", "w")
make = start("make", "-j2", stdout=log, stderr=log)
until(lambda: built() >= 4, "the first objects")
say("ready")
if built() >= FILES:
    fail("it was built before anybody could look")
try:
    code = make.wait(100)
except subprocess.TimeoutExpired:
    code = None
text = open("log").read()
if code != 0 or "arning" in text:
    fail("make: %r\n%s" % (code, text[-3000:]))
expect(int(subprocess.check_output("./program")), expected(), "what the program computes")
asked.wait()
say("ok")
