/* Runs a case on the host CPU: code in an executable page (written through another mapping), exceptions as signals. */
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
#include "diff.h"

/* Read and written by stub.S. */
struct diff_state host_in, host_out;
u64 host_entry, host_stack;
u64 host_cs, host_ds, host_gs; /* selectors; host_cs 0: stay in 64-bit mode */
u64 host_entry_stack = ENTRY_PAGE + PAGE_SIZE;
u8 host_ext;
/* What C code expects: everything initial, exceptions masked. */
struct diff_state host_clean = {.xsave = {[24] = 0x80, [25] = 0x1f}};
void host_enter(void);
extern const char host_exit[], host_return[];

const u8 arena_map[ARENA_PAGES] = {PAGE_GONE, PAGE_RW, PAGE_RW, PAGE_RO, PAGE_GONE, PAGE_RW, PAGE_RW, PAGE_GONE};

#define INT3              0xcc
#define SIGNAL_XSAVE_SIZE 2688 /* through AVX-512, in the standard layout of signal frames */
/* The way out, from either mode: jmp *0(%rip) and behind it the address of host_exit. */
#define EXIT_AT   (CODE_BASE + CODE_SIZE - 14) /* the address is aligned: EFLAGS.AC may be set */
#define USER_CS32 0x23
#define USER_CS   0x33
#define USER_DS   0x2b
#define LDT_CODE  0x07
#define LDT_DATA  0x0f

static u8 *code; /* writable mapping of the code area */
static unsigned slot;
static bool took_signal;
void (*host_on_crash)(void);
static unsigned mode;
bool diff_based;

static void die(const char *what) {
  perror(what);
  exit(2);
}

static void map_code(void) {
  int fd = memfd_create("diff-code", 0);
  if (fd < 0 || ftruncate(fd, CODE_SIZE)) die("memfd");
  code = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  void *x = mmap((void *)CODE_BASE, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
  if (code == MAP_FAILED || x == MAP_FAILED) die("code area");
  close(fd);
  memset(code, INT3, CODE_SIZE);
}

static void put_way_out(void) {
  static const u8 jump[6] = {0xff, 0x25};
  u64 to = (u64)(uintptr_t)host_exit;
  memcpy(code + (EXIT_AT - CODE_BASE), jump, 6);
  memcpy(code + (EXIT_AT - CODE_BASE) + 6, &to, 8);
}

static void map_arena(void) {
  u8 *a = mmap((void *)ARENA_BASE, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (a == MAP_FAILED) die("arena");
}

void host_fill_arena(void) {
  u8 *a = (u8 *)ARENA_BASE;
  for (u64 n = 0; n < ARENA_SIZE; n += 8) *(u64 *)(a + n) = rnd();
  memcpy(engine_arena, a, ARENA_SIZE);
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] != PAGE_RW) mprotect(a + p * PAGE_SIZE, PAGE_SIZE, arena_map[p] == PAGE_RO ? PROT_READ : PROT_NONE);
}

static void take_registers(const greg_t *g) {
  static const u8 from[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (unsigned n = 0; n < 16; n++) host_out.gpr[n] = (u64)g[from[n]];
  host_out.rflags = (u64)g[REG_EFL];
  host_out.ip = (u64)g[REG_RIP];
}

static bool in_code(u64 ip) { return ip + diff_code_base(mode) - CODE_BASE < CODE_SIZE; }

/* Every end of a case that is not a jump to host_exit.  What is neither the case's nor foreseen ends the program. */
static void on_signal(int sig, siginfo_t *info, void *context) {
  ucontext_t *uc = context;
  greg_t *g = uc->uc_mcontext.gregs;
  int trap = (int)g[REG_TRAPNO];
  bool at_exit = g[REG_RIP] == (greg_t)(uintptr_t)host_exit || (g[REG_RIP] == (greg_t)EXIT_AT && trap == 1); /* single step behind a POPF that set TF */
  bool fetch = trap == 14 && (u64)g[REG_CR2] == (u64)g[REG_RIP] + diff_code_base(mode);     /* a branch to where nothing is */
  if (!in_code((u64)g[REG_RIP] - (trap == 3)) && !at_exit && !fetch && trap != 1) { /* a single step may end anywhere */
    if (host_on_crash) host_on_crash();
    signal(sig, SIG_DFL);
    return;
  }
  take_registers(g);
  if (host_ext) memcpy(host_out.xsave, uc->uc_mcontext.fpregs, SIGNAL_XSAVE_SIZE);
  took_signal = true;
  host_out.vector = trap;
  host_out.error = (u32)g[REG_ERR];
  if (trap == 14) host_out.cr2 = (u64)g[REG_CR2];
  if (at_exit && trap == 1) host_out.vector = -1, took_signal = false;
  if (fetch) host_out.vector = -1, host_out.error = 0, host_out.cr2 = 0;
  if (trap == 3) { /* ran into an int3: of a branch's target, or behind the code */
    host_out.vector = -1;
    host_out.ip--;
  }
  g[REG_RIP] = (greg_t)(uintptr_t)host_return;
  g[REG_RSP] = (greg_t)host_stack;
  g[REG_EFL] = 0x202;
  g[REG_CSGSFS] = (g[REG_CSGSFS] & 0xffffffff0000) | USER_CS | (greg_t)USER_DS << 48;
}

static void install_handlers(void) {
  static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
  stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&ss, NULL);
  struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  for (unsigned n = 0; n < ARRAY_SIZE(signals); n++) sigaction(signals[n], &sa, NULL);
}

/* Code and data segments with bases and limits in the local descriptor table. */
static void make_segments(void) {
  struct user_desc code16 = {.entry_number = 0, .base_addr = (u32)CODE_BASE, .limit = CODE_LIMIT16, .contents = MODIFY_LDT_CONTENTS_CODE, .useable = 1, .seg_32bit = mode == 32};
  struct user_desc data16 = {.entry_number = 1, .base_addr = (u32)ARENA_BASE, .limit = ARENA_SIZE - 1, .contents = MODIFY_LDT_CONTENTS_DATA, .useable = 1, .seg_32bit = mode == 32};
  if (syscall(SYS_modify_ldt, 1, &code16, sizeof(code16)) || syscall(SYS_modify_ldt, 1, &data16, sizeof(data16))) die("segments");
}

/* A 32-bit data segment whose base is not 0. */
static void make_gs(void) {
  struct user_desc gs = {.entry_number = 2, .base_addr = (u32)DIFF_GS_BASE, .limit = 0xfffff, .limit_in_pages = 1, .seg_32bit = 1, .contents = MODIFY_LDT_CONTENTS_DATA, .useable = 1};
  if (syscall(SYS_modify_ldt, 1, &gs, sizeof(gs))) die("GS");
  host_gs = DIFF_GS;
}

static void set_mode(unsigned m) {
  mode = m;
  if (m == 64) return;
  void *p = mmap((void *)ENTRY_PAGE, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (p == MAP_FAILED) die("entry stack");
  bool based = m == 16 || diff_based;
  if (based) make_segments();
  if (m == 32) make_gs();
  host_cs = based ? LDT_CODE : USER_CS32;
  host_ds = based ? LDT_DATA : USER_DS;
}

u8 *host_init(unsigned m) {
  set_mode(m);
  map_code();
  put_way_out();
  map_arena();
  install_handlers();
  if (syscall(SYS_arch_prctl, ARCH_SET_GS, DIFF_GS_BASE)) die("GS base");
  return code;
}

static u64 slot_address(unsigned n) { return CODE_BASE + PAGE_SIZE + n * SLOT_SIZE + SLOT_OFFSET; }
#define SLOTS ((unsigned)((CODE_SIZE - 3 * PAGE_SIZE) / SLOT_SIZE))

u64 host_next_slot(void) { return slot_address(slot); }

/* jmp EXIT_AT, or ljmp USER_CS:EXIT_AT. */
static void put_exit(u8 *p, u64 address) {
  u32 to = (u32)(mode != 64 ? EXIT_AT : EXIT_AT - (address + 5));
  u16 cs = USER_CS;
  if (mode == 16) *p++ = 0x66;
  p[0] = mode != 64 ? 0xea : 0xe9;
  memcpy(p + 1, &to, 4);
  if (mode != 64) memcpy(p + 5, &cs, 2);
}

static void enter(const struct diff_case *k, struct diff_state *out) {
  memcpy(&host_in.gpr, &k->in.gpr, sizeof(host_in.gpr));
  host_in.rflags = k->in.rflags;
  host_ext = k->ext;
  if (k->ext) memcpy(host_in.xsave, k->in.xsave, sizeof(host_in.xsave));
  host_entry = k->at - diff_code_base(mode);
  host_out.vector = -1;
  host_out.error = 0;
  host_out.cr2 = 0;
  took_signal = false;
  host_enter();
  if (!took_signal) host_out.ip = DIFF_END;
  memcpy(&out->gpr, &host_out.gpr, sizeof(*out) - offsetof(struct diff_state, gpr));
  if (k->ext) memcpy(out->xsave, host_out.xsave, sizeof(out->xsave));
}

void host_run(const struct diff_case *k, struct diff_state *out) {
  static u8 *last;
  u8 *at = code + (k->at - CODE_BASE);
  if (last) memset(last, INT3, 32); /* the engine may have read it as data until now */
  last = at;
  slot = (slot + 1) % SLOTS;
  memcpy(at, k->code, k->len);
  if (!k->branch) put_exit(at + k->len, k->at + k->len);
  enter(k, out);
  if (out->ip == DIFF_END) out->ip = host_entry + k->len;
}

/* ---- sequences ---- */

void host_place(u64 at, const u8 *bytes, unsigned len) {
  static u8 *last;
  u8 *p = code + (at - CODE_BASE);
  if (last) memset(last, INT3, SEQ_SIZE);
  last = p;
  memcpy(p, bytes, len);
  put_exit(p + len, at + len);
}

u64 host_exit_address(void) { return (u64)(uintptr_t)host_exit; }
bool host_is_int3(u64 ip) { return in_code(ip) && code[ip + diff_code_base(mode) - CODE_BASE] == INT3; }
void host_run_placed(const struct diff_case *k, struct diff_state *out) { enter(k, out); }

/* Code that does not end is stopped after some ticks. */
static volatile unsigned ticks;
static void (*volatile stop_other)(void);
#define PATIENCE 3

static void on_tick(int sig, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  if (++ticks < PATIENCE) return;
  if (!in_code((u64)g[REG_RIP])) {
    if (stop_other) stop_other();
    return;
  }
  g[REG_TRAPNO] = DIFF_ENDLESS;
  on_signal(sig, info, context);
}

void host_watch(void (*stop)(void)) {
  ticks = 0;
  stop_other = stop;
}

void host_start_watch(void) {
  struct sigaction sa = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
  struct itimerval t = {.it_interval.tv_usec = 20000, .it_value.tv_usec = 20000};
  sigaction(SIGVTALRM, &sa, NULL);
  setitimer(ITIMER_VIRTUAL, &t, NULL);
}
