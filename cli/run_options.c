/* The options of `uvirt run`: one row each, with its help. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/run_options.h"
#include "vmm/backend/console.h"
#include "vmm/machine/cpumodel.h"
#include "vmm/virtio/virtio.h"

static int set_kernel(struct run_options *o, const char *arg) {
  o->machine.kernel = arg;
  return 0;
}

static int set_initrd(struct run_options *o, const char *arg) {
  o->machine.initrd = arg;
  return 0;
}

static int set_append(struct run_options *o, const char *arg) {
  o->machine.append = arg;
  return 0;
}

/* A number with K, M, G or T; without one it is in MiB. */
static bool parse_size(const char *arg, uint64_t *size) {
  static const char units[] = "KMGT";
  char *end;
  errno = 0;
  unsigned long long n = strtoull(arg, &end, 10);
  unsigned shift = 20;
  if (*end) {
    const char *unit = strchr(units, *end >= 'a' ? *end - 32 : *end);
    shift = unit && end[1] == 0 ? 10 * (unsigned)(unit - units + 1) : 0;
  }
  if (end == arg || *arg == '-' || shift == 0 || errno || n > UINT64_MAX >> shift) return false;
  *size = (uint64_t)n << shift;
  return true;
}

static int set_memory(struct run_options *o, const char *arg) {
  if (parse_size(arg, &o->machine.memory)) return 0;
  complain("the memory size '%s' is not a number with K, M, G or T behind it", arg);
  return -1;
}

static int set_cpus(struct run_options *o, const char *arg) {
  char *end;
  errno = 0;
  long n = strtol(arg, &end, 10);
  if (end == arg || *end || errno || n < 1 || n > 4096) {
    complain("the number of CPUs '%s' is not a number from 1 to 4096", arg);
    return -1;
  }
  o->machine.cpus = (unsigned)n;
  return 0;
}

static int set_cpu(struct run_options *o, const char *arg) {
  struct cpu_model model;
  char err[CPU_ERR_LEN];
  o->machine.cpu = arg;
  if (cpu_model_parse(arg, &model, err) == 0) return 0;
  complain("%s", err);
  return -1;
}

/* The same file twice would be two writers that do not know of each other. */
static bool same_file(const char *a, const char *b) {
  struct stat sa, sb;
  if (stat(a, &sa) < 0 || stat(b, &sb) < 0) return strcmp(a, b) == 0;
  return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

static int add_disk(struct run_options *o, const char *arg) {
  struct machine_config *m = &o->machine;
  if (m->disk_count == MACHINE_MAX_DISKS) {
    complain("more than %d disks", MACHINE_MAX_DISKS);
    return -1;
  }
  char *path = strdup(arg);
  if (!path) return -1;
  o->owned[m->disk_count] = path;
  struct machine_disk *disk = &m->disks[m->disk_count++];
  char *comma = strrchr(path, ',');
  disk->readonly = comma && strcmp(comma, ",ro") == 0;
  if (disk->readonly) *comma = 0;
  disk->path = path;
  for (unsigned i = 0; i + 1 < m->disk_count; i++)
    if (same_file(m->disks[i].path, path)) {
      complain("the disk '%s' is given twice", path);
      return -1;
    }
  return 0;
}

static int add_net(struct run_options *o, const char *arg) {
  char err[VIRTIO_ERR_MAX];
  if (strcmp(arg, "none") == 0) {
    o->machine.net_count = 0;
    return 0;
  }
  if (o->machine.net_count == MACHINE_MAX_NETS) {
    complain("more than %d network devices", MACHINE_MAX_NETS);
    return -1;
  }
  const struct virtio_net_options net = {.spec = arg};
  if (virtio_net_check(&net, err)) {
    complain("%s", err);
    return -1;
  }
  o->machine.nets[o->machine.net_count++] = arg;
  return 0;
}

static int check_console(const char *arg) {
  char err[CONSOLE_ERR_LEN];
  if (console_spec_ok(arg, err)) return 0;
  complain("%s", err);
  return -1;
}

static int set_console(struct run_options *o, const char *arg) {
  o->machine.console = arg;
  return check_console(arg);
}

static int set_virtio_console(struct run_options *o, const char *arg) {
  o->machine.virtio_console = arg;
  return check_console(arg);
}

static int set_accel(struct run_options *o, const char *arg) {
  static const char *const names[] = {[ACCEL_AUTO] = "auto", [ACCEL_SOFT] = "soft", [ACCEL_HOST] = "host"};
  for (int i = 0; i < 3; i++)
    if (strcmp(arg, names[i]) == 0) {
      o->accel = (enum accel_choice)i;
      return 0;
    }
  complain("the accelerator '%s' is none of soft, host, auto", arg);
  return -1;
}

/* ---- the engine: it reads these from the environment ---- */

static int tell_engine(struct run_options *o, const char *option, const char *variable, const char *value) {
  o->engine_option = option;
  if (setenv(variable, value, 1) == 0) return 0;
  complain("%s", strerror(errno));
  return -1;
}

static int set_code_cache(struct run_options *o, const char *arg) {
  uint64_t size;
  if (parse_size(arg, &size) && size >= 1u << 20 && size <= 1u << 30) return tell_engine(o, "--code-cache", "UVIRT_CODE_CACHE", arg);
  complain("the size of the code cache '%s' is not one from 1M to 1G", arg);
  return -1;
}

/* The engine appends to the file. */
static int set_trace_code(struct run_options *o, const char *arg) {
  FILE *f = arg ? fopen(arg, "we") : NULL;
  if (f) fclose(f);
  if (f || !arg) return tell_engine(o, "--trace-code", "UVIRT_TRACE_CODE", arg ? arg : "-");
  complain("the listing %s cannot be written: %s", arg, strerror(errno));
  return -1;
}

static int set_symbols(struct run_options *o, const char *arg) {
  if (access(arg, R_OK) == 0) return tell_engine(o, "--symbols", "UVIRT_SYMBOLS", arg);
  complain("the symbols %s cannot be read: %s", arg, strerror(errno));
  return -1;
}

static int set_perf_map(struct run_options *o, const char *arg) {
  return tell_engine(o, "--perf-map", "UVIRT_PERF_MAP", "1");
}

static int set_gdb_jit(struct run_options *o, const char *arg) {
  return tell_engine(o, "--gdb-jit", "UVIRT_GDB_JIT", "1");
}

/* ---- flags ---- */

#define SET_FLAG(name, field)                                                                                                    \
  static int name(struct run_options *o, const char *arg) {                                                                      \
    o->field = true;                                                                                                             \
    return 0;                                                                                                                    \
  }
SET_FLAG(set_rng, machine.rng)
SET_FLAG(set_debug_exit, machine.debug_exit)
SET_FLAG(set_no_reboot, machine.no_reboot)
SET_FLAG(set_dry_run, dry_run)
SET_FLAG(set_json, json)
SET_FLAG(set_help, help)

static const struct option_row {
  const char *name, *value; /* value: NULL for a flag; in brackets, with its "=": may be left out */
  int (*set)(struct run_options *o, const char *arg);
  const char *help; /* further lines begin after a newline */
} rows[] = {
    {"kernel", "FILE", set_kernel, "what to boot: a bzImage, an ELF (PVH, vmlinux or bare), or multiboot; required"},
    {"initrd", "FILE", set_initrd, "initial RAM disk"},
    {"append", "TEXT", set_append, "kernel command line (default: console=ttyS0)"},
    {"memory", "SIZE", set_memory, "RAM with K, M, G or T; a bare number is in MiB (default: 512M)"},
    {"cpus", "N", set_cpus, "number of CPUs (default: 1)"},
    {"cpu", "MODEL", set_cpu,
     "x86-64-v1 to x86-64-v4 or max (the default), and\n,+FEATURE ,-FEATURE ,vendor=intel ,vendor=amd"},
    {"disk", "FILE[,ro]", add_disk, "virtio disk with the contents of FILE; may be repeated"},
    {"net", "SPEC", add_net, "user[,hostfwd=tcp:127.0.0.1:HPORT-:GPORT], tap=NAME or none (the default);\nmay be repeated"},
    {"console", "WHERE", set_console, "where the serial port goes: stdio (the default), pty, file=PATH or none"},
    {"virtio-console", "WHERE", set_virtio_console, "adds hvc0, likewise"},
    {"rng", NULL, set_rng, "adds a random number device"},
    {"debug-exit", NULL, set_debug_exit, "a write to port 0x501 or 0xf4 ends the machine with 32 + ((value << 1 | 1) & 0x5f)"},
    {"no-reboot", NULL, set_no_reboot, "end instead of restarting when the guest resets"},
    {"accel", "KIND", set_accel,
     "soft (uvirt's own engine), host (/dev/kvm) or auto (the default: host where the\nCPU has VT-x or SVM)"},
    {"code-cache", "SIZE", set_code_cache, "memory for translated guest code, 1M to 1G (default: 64M)"},
    {"trace-code", "[=FILE]", set_trace_code, "list every translation, guest and host code side by side, in FILE or on stderr"},
    {"perf-map", NULL, set_perf_map, "write /tmp/perf-PID.map, by which perf names guest code"},
    {"gdb-jit", NULL, set_gdb_jit, "tell gdb the names of guest code"},
    {"symbols", "FILE", set_symbols, "System.map or ELF file with the names for the three options above"},
    {"dry-run", NULL, set_dry_run, "build the machine, describe it, do not run it"},
    {"json", NULL, set_json, "print the description, or how the run ended (last line of stderr), as JSON"},
    {"help", NULL, set_help, "print this"},
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

static bool is_optional(const struct option_row *row) {
  return row->value && *row->value == '[';
}

static void print_row(const struct option_row *row) {
  char left[40];
  snprintf(left, sizeof(left), "--%s%s%s", row->name, row->value && !is_optional(row) ? " " : "", row->value ? row->value : "");
  printf("  %-24s", left);
  for (const char *p = row->help; *p; p++) {
    putchar(*p);
    if (*p == '\n') printf("%26s", "");
  }
  putchar('\n');
}

void run_options_help(void) {
  puts("Usage: uvirt run --kernel FILE [OPTIONS]\n\nBoots a virtual machine.\n");
  for (int i = 0; i < ROWS; i++) print_row(&rows[i]);
  puts("\nOn a terminal, Ctrl-A x quits, Ctrl-A h helps, Ctrl-A Ctrl-A sends Ctrl-A.\n\n"
       "Exit codes: 0 power-off, 1 host error, 2 bad command line, 3 reset (with --no-reboot), 4 guest panic,\n"
       "5 triple fault, 6 KVM internal error, 7 quit by key or signal, 32 and up debug exit.");
}

static const struct option_row *find_row(const char *name, size_t len) {
  for (int i = 0; i < ROWS; i++)
    if (strlen(rows[i].name) == len && memcmp(rows[i].name, name, len) == 0) return &rows[i];
  return NULL;
}

/* Takes the option at argv[*i], and its value from behind "=" or from the next argument. */
static int parse_one(int argc, char **argv, int *i, struct run_options *o) {
  const char *arg = argv[*i];
  if (strcmp(arg, "-h") == 0) return set_help(o, NULL);
  if (strncmp(arg, "--", 2) != 0) {
    complain("'%s' is not an option; `uvirt run --help` lists them", arg);
    return -1;
  }
  const char *equals = strchr(arg, '=');
  size_t len = equals ? (size_t)(equals - arg - 2) : strlen(arg + 2);
  const struct option_row *row = find_row(arg + 2, len);
  if (!row) {
    complain("there is no option '%.*s'; `uvirt run --help` lists them", (int)len + 2, arg);
    return -1;
  }
  if (!row->value && equals) {
    complain("the option '--%s' takes no value", row->name);
    return -1;
  }
  if (!row->value || (is_optional(row) && !equals)) return row->set(o, NULL);
  if (!equals && *i + 1 >= argc) {
    complain("the option '--%s' needs a value: %s", row->name, row->value);
    return -1;
  }
  return row->set(o, equals ? equals + 1 : argv[++*i]);
}

int run_options_parse(int argc, char **argv, struct run_options *o) {
  *o = (struct run_options){
      .machine = {.append = "console=ttyS0", .memory = 512ull << 20, .cpus = 1, .cpu = "max", .console = "stdio"}};
  for (int i = 1; i < argc; i++)
    if (parse_one(argc, argv, &i, o)) return -1;
  if (o->help || argc == 1) return 0;
  if (!o->machine.kernel) {
    complain("there is nothing to boot: give --kernel FILE");
    return -1;
  }
  const char *con = o->machine.console, *hvc = o->machine.virtio_console;
  if (hvc && strcmp(con, "stdio") == 0 && strcmp(hvc, "stdio") == 0) {
    complain("only one of --console and --virtio-console can be on stdio; give --console none");
    return -1;
  }
  return 0;
}

void run_options_free(struct run_options *o) {
  for (int i = 0; i < MACHINE_MAX_DISKS; i++) free(o->owned[i]);
}
