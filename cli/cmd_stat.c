/* `uvirt stat`: what the virtual machines of a process do, as rates per second on the terminal or as JSON. */
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/stat_read.h"
#include "vmm/vmm.h"

#define PROCESSES_MAX 64

struct options {
  pid_t pid; /* 0: the only one there is */
  double interval;
  bool json, once, all;
};

static void print_help(void) {
  puts("Usage: uvirt stat [OPTIONS] [PID]\n\n"
       "Shows the statistics of the virtual machines in a process: exits by reason, interrupts, page faults, halts; sums over "
       "its vCPUs.\n"
       "Without PID it takes the only process of yours that runs some, or lists them.\n\n"
       "  --interval SECONDS  between two samples (default 1)\n"
       "  --once              one sample of totals and one of rates, then end (default where the output is no terminal)\n"
       "  --all               also what never happened\n"
       "  --json              one sample of totals and rates as JSON\n"
       "  --help              this text\n\n"
       "On the terminal: q ends it.  Exit code: 0, 1 where there is nothing to show, 2 for a wrong command line.");
}

static bool parse_number(const char *text, double least, double *out) {
  char *end;
  *out = text ? strtod(text, &end) : 0;
  return text && *text && !*end && *out >= least;
}

static int parse(int argc, char **argv, struct options *o) {
  double v;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--json"))
      o->json = true;
    else if (!strcmp(argv[i], "--once"))
      o->once = true;
    else if (!strcmp(argv[i], "--all"))
      o->all = true;
    else if (!strcmp(argv[i], "--interval")) {
      if (!parse_number(argv[++i < argc ? i : argc], 0.01, &v) || v > 86400)
        return complain("--interval wants seconds, at least 0.01"), VMM_END_USAGE;
      o->interval = v;
    } else if (!o->pid && parse_number(argv[i], 1, &v) && v <= 1 << 22) {
      o->pid = (pid_t)v;
    } else {
      return complain("`uvirt stat` does not know '%s'; see `uvirt stat --help`", argv[i]), VMM_END_USAGE;
    }
  }
  return 0;
}

static void print_processes(const pid_t *pids, unsigned n) {
  complain("%u processes run virtual machines; say which:", n);
  for (unsigned i = 0; i < n && i < PROCESSES_MAX; i++) {
    char path[64], name[64] = "?\n";
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pids[i]);
    FILE *f = fopen(path, "r");
    if (f && !fgets(name, sizeof(name), f)) strcpy(name, "?\n");
    if (f) fclose(f);
    fprintf(stderr, "  %d  %s", (int)pids[i], name);
  }
}

static int choose(struct options *o) {
  pid_t pids[PROCESSES_MAX];
  if (o->pid) return 0;
  unsigned n = stat_processes(pids, PROCESSES_MAX);
  if (n == 1) return o->pid = pids[0], 0;
  if (n)
    print_processes(pids, n);
  else
    complain("no process of yours runs a virtual machine of uvirt's");
  return 1;
}

static int sample(const struct options *o, struct stat_sample *s) {
  int r = stat_read(o->pid, s);
  if (r == -ESRCH)
    complain("there is no process %d", (int)o->pid);
  else if (r == -EACCES || r == -EPERM)
    complain("process %d is not yours to read", (int)o->pid);
  else if (r)
    complain("process %d runs no virtual machine of uvirt's", (int)o->pid);
  return r ? 1 : 0;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t value_before(const struct stat_sample *s, const struct stat_row *row) {
  for (unsigned n = 0; n < s->n; n++)
    if (!strcmp(s->rows[n].owner, row->owner) && !strcmp(s->rows[n].name, row->name)) return s->rows[n].value;
  return 0;
}

static double rate(const struct stat_sample *before, const struct stat_row *row, double seconds) {
  uint64_t v = value_before(before, row);
  return row->value > v && seconds > 0 ? (double)(row->value - v) / seconds : 0;
}

static void print_table(const struct options *o, const struct stat_sample *before, const struct stat_sample *s, double seconds,
                        const char *eol) {
  printf("process %d: %u machine%s, %u vCPU%s%s\n", (int)o->pid, s->vms, s->vms == 1 ? "" : "s", s->vcpus,
         s->vcpus == 1 ? "" : "s", eol);
  printf("%-36s %20s %16s%s\n", "", "total", "per second", eol);
  for (unsigned n = 0; n < s->n; n++) {
    const struct stat_row *r = &s->rows[n];
    if (!o->all && !r->value) continue;
    printf("%-4s %-31s %20llu", r->owner, r->name, (unsigned long long)r->value);
    if (r->instant)
      printf(" %16s%s\n", "-", eol);
    else
      printf(" %16.0f%s%s%s\n", rate(before, r, seconds), *r->unit ? " " : "", r->unit, eol);
  }
}

static int print_json(const struct options *o, const struct stat_sample *before, const struct stat_sample *s, double seconds) {
  json_t *rows = json_array();
  for (unsigned n = 0; n < s->n; n++) {
    const struct stat_row *r = &s->rows[n];
    json_t *j = json_pack("{s:s, s:s, s:I}", "owner", r->owner, "name", r->name, "total", (json_int_t)r->value);
    if (*r->unit) json_object_set_new(j, "unit", json_string(r->unit));
    if (!r->instant) json_object_set_new(j, "per_second", json_real(rate(before, r, seconds)));
    json_array_append_new(rows, j);
  }
  json_t *all = json_pack("{s:i, s:i, s:i, s:f, s:o}", "pid", (int)o->pid, "machines", (int)s->vms, "vcpus", (int)s->vcpus,
                          "seconds", seconds, "statistics", rows);
  int r = !all || json_dumpf(all, stdout, JSON_INDENT(2)) ? 1 : 0;
  putchar('\n');
  json_decref(all);
  return r;
}

/* Waits for the interval; true: the user has had enough. */
static bool wait_or_quit(double seconds, bool keys) {
  struct pollfd p = {.fd = keys ? 0 : -1, .events = POLLIN};
  char c;
  double end = now() + seconds;
  for (double left; (left = end - now()) > 0;) {
    if (poll(&p, 1, (int)(left * 1000) + 1) <= 0) continue;
    if (read(0, &c, 1) <= 0 || c == 'q' || c == 3) return true;
  }
  return false;
}

/* Keys arrive one by one and unseen; everything else, also ^C, stays as it is. */
static bool set_keys(struct termios *saved) {
  if (!isatty(0) || tcgetattr(0, saved)) return false;
  struct termios t = *saved;
  t.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
  return !tcsetattr(0, TCSANOW, &t);
}

static struct stat_sample samples[2];

static int live(const struct options *o) {
  struct termios saved;
  bool keys = set_keys(&saved), quit = false;
  double at = now();
  int r = 0;
  for (unsigned n = 1; !quit; n++) {
    quit = wait_or_quit(n == 1 ? 0.2 : o->interval, keys);
    double t = now();
    if (quit || (r = sample(o, &samples[n % 2]))) break;
    fputs("\033[H\033[J", stdout);
    print_table(o, &samples[(n + 1) % 2], &samples[n % 2], t - at, "\033[K");
    fputs(keys ? "\nq: end\033[K" : "", stdout);
    fflush(stdout);
    at = t;
  }
  if (keys) tcsetattr(0, TCSANOW, &saved);
  putchar('\n');
  return r;
}

int cmd_stat(int argc, char **argv) {
  struct options o = {.interval = 1};
  if (asks_for_help(argc, argv)) return print_help(), 0;
  int r = parse(argc, argv, &o);
  if (!r) r = choose(&o);
  if (!r) r = sample(&o, &samples[0]);
  if (r) return r;
  if (!o.json && !o.once && isatty(1)) return live(&o);
  double at = now();
  wait_or_quit(o.interval, false);
  double seconds = now() - at;
  if ((r = sample(&o, &samples[1]))) return r;
  if (o.json) return print_json(&o, &samples[0], &samples[1], seconds);
  print_table(&o, &samples[0], &samples[1], seconds, "");
  return 0;
}
