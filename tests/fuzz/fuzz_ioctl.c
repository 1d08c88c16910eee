/* Fuzz target: every ioctl of the tables, from several threads at once, with guests that run and client memory that changes and
 * goes.
 *
 * An input makes a VM (without chips, with them, or with local APICs alone), gives it memory and vCPUs, and then each thread does
 * what the input's bytes say, and what follows from them when they are used up.  Nothing may crash, hang or touch the program's
 * own memory, and when all descriptors are closed none of the library's own and none of its mappings is left. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "api/front.h"
#include "ioctl.h"
#include "uvirt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* For the thread sanitizer: to close a descriptor that another thread uses is this program's intention; counters go on while they
 * become a file. */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
  return "race_top:close\nrace:^make_file$\n";
}
const uint8_t *fuzz_seed_input(unsigned i, size_t *size);

enum { THREADS = 3, OPS = 200, PLACES = 6, RUNS = 8, KICK_NS = 1000000, CHECK_MAPS_EVERY = 64 };

/* ---- choices ---- */

static u64 mix(u64 *state) { /* splitmix64 */
  u64 z = *state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

static u8 choose_byte(struct source *s) {
  if (!s->left) return (u8)mix(&s->state);
  s->left--;
  return *s->data++;
}

u64 choose(struct source *s) {
  u64 v = 0;
  if (!s->left) return mix(&s->state);
  choose_bytes(s, &v, sizeof(v));
  return v;
}

size_t choose_below(struct source *s, size_t n) {
  if (n <= 1) return 0;
  return n <= 256 ? choose_byte(s) % n : choose(s) % n;
}

u64 choose_odd(struct source *s) {
  u64 v = 1ull << choose_below(s, 64);
  switch (choose_below(s, 4)) {
  case 0:
    return v;
  case 1:
    return v - 1;
  case 2:
    return 0 - v;
  default:
    return v + choose_below(s, 16) - 8;
  }
}

void choose_bytes(struct source *s, void *to, size_t len) {
  for (size_t n = 0; n < len; n++) ((u8 *)to)[n] = choose_byte(s);
}

/* ---- descriptors: whoever takes one out of its place may close it, others may use the number meanwhile ---- */

static _Atomic int place[FD_KINDS][PLACES];
static int eventfds[EVENTFDS];

static int look(struct source *s, enum fd_kind kind) {
  return atomic_load(&place[kind][choose_below(s, PLACES)]);
}

static void put(struct source *s, enum fd_kind kind, int fd) {
  if (fd < 0) return;
  int old = atomic_exchange(&place[kind][choose_below(s, PLACES)], fd);
  if (old >= 0) uvirt_close(old);
}

static void duplicate(struct source *s, enum fd_kind kind) {
  _Atomic int *p = &place[kind][choose_below(s, PLACES)];
  int fd = atomic_exchange(p, -1), copy = fd < 0 ? -1 : dup(fd);
  if (copy >= 0 && front_alias(fd, copy)) abort();
  put(s, kind, copy);
  int other = atomic_exchange(p, fd);
  if (other >= 0) uvirt_close(other);
}

/* ---- machines ---- */

static void map_vcpu(struct source *s, int vcpu) {
  u8 *at = memory_window((unsigned)choose_below(s, WINDOWS));
  size_t len = choose_below(s, 4) ? 3 * PAGE_SIZE : (1 + choose_below(s, 80)) * PAGE_SIZE;
  off_t offset = choose_below(s, 4) ? 0 : (off_t)(choose_below(s, 70) * PAGE_SIZE);
  int prot = PROT_READ | (choose_below(s, 8) ? PROT_WRITE : 0) | (choose_below(s, 8) ? 0 : PROT_EXEC);
  uvirt_mmap(at, len, prot, MAP_FIXED | (choose_below(s, 8) ? MAP_SHARED : MAP_PRIVATE), vcpu, offset);
}

static int add_vcpu(struct source *s, int vm, unsigned id) {
  int vcpu = uvirt_ioctl(vm, KVM_CREATE_VCPU, (void *)(uintptr_t)id);
  if (vcpu < 0) return vcpu;
  map_vcpu(s, vcpu);
  if (choose_below(s, 8)) args_set_cpuid(vcpu);
  guest_restart(s, vcpu);
  put(s, FD_VCPU, vcpu);
  return vcpu;
}

/* A usable VM; what the threads make of it is their business. */
static void add_vm(struct source *s) {
  int system = look(s, FD_SYSTEM), vm = system < 0 ? -1 : uvirt_ioctl(system, KVM_CREATE_VM, NULL);
  if (vm < 0) return;
  struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  struct kvm_enable_cap ring = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {0x1000ull << choose_below(s, 3)}};
  struct kvm_pit_config pit = {0};
  unsigned chips = (unsigned)choose_below(s, 3);
  if (chips == 1 && !uvirt_ioctl(vm, KVM_CREATE_IRQCHIP, NULL)) uvirt_ioctl(vm, KVM_CREATE_PIT2, &pit);
  if (chips == 2) uvirt_ioctl(vm, KVM_ENABLE_CAP, &split);
  if (!choose_below(s, 3)) uvirt_ioctl(vm, KVM_ENABLE_CAP, &ring);
  for (u32 n = 0; n < 4; n++) {
    struct kvm_userspace_memory_region m = {
        .slot = n, .guest_phys_addr = (u64)n << 20, .memory_size = PIECE_SIZE, .userspace_addr = (u64)(uintptr_t)memory_piece(n)};
    if (n) m.flags = (u32)choose_below(s, 4);
    uvirt_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &m);
  }
  for (unsigned n = 1 + (unsigned)choose_below(s, 3), id = 0; id < n; id++) add_vcpu(s, vm, id);
  put(s, FD_VM, vm);
}

/* ---- what a thread does ---- */

static void any_ioctl(struct caller *c) {
  static const u8 kinds[] = {FD_SYSTEM, FD_VM, FD_VM, FD_VM, FD_VCPU, FD_VCPU, FD_VCPU, FD_VCPU, FD_DEVICE, FD_STATS};
  struct source *s = &c->source;
  enum fd_kind kind = (enum fd_kind)kinds[choose_below(s, ARRAY_SIZE(kinds))];
  const struct ioctl_row *const *rows;
  unsigned n = rows_of(choose_below(s, 32) ? kind : (enum fd_kind)choose_below(s, FD_STATS), &rows);
  int fd = look(s, kind);
  if (!n) return;
  const struct ioctl_row *row = rows[choose_below(s, n)];
  u32 request = (u32)row->request; /* what the kernel looks at */
  void *arg = args_make(c, fd, row);
  if (!choose_below(s, 64)) request ^= 1u << choose_below(s, 32);
  int r = uvirt_ioctl(fd, request | (u64)choose_byte(s) << 32, arg);
  if (r < 0) return;
  /* A new descriptor has an owner. */
  if (request == KVM_CREATE_VM) put(s, FD_VM, r);
  if (request == KVM_CREATE_VCPU) put(s, FD_VCPU, r);
  if (request == KVM_GET_STATS_FD) put(s, FD_STATS, r);
  struct kvm_create_device device;
  if (request == KVM_CREATE_DEVICE && memory_get(&device, arg, sizeof(device)) && !(device.flags & KVM_CREATE_DEVICE_TEST))
    put(s, FD_DEVICE, (int)device.fd);
}

/* On and on while it exits for a device and the like. */
static void run(struct caller *c) {
  int vcpu = look(&c->source, FD_VCPU);
  for (unsigned n = 0; n < RUNS && !uvirt_ioctl(vcpu, KVM_RUN, NULL); n++) {
  }
}
static void start_again(struct caller *c) {
  guest_restart(&c->source, look(&c->source, FD_VCPU));
}
static void disturb(struct caller *c) {
  memory_disturb(&c->source);
}
static void new_vm(struct caller *c) {
  if (!choose_below(&c->source, 4)) add_vm(&c->source);
}
static void new_vcpu(struct caller *c) {
  add_vcpu(&c->source, look(&c->source, FD_VM), (unsigned)choose_below(&c->source, 4));
}

static void write_memory(struct caller *c) {
  u8 bytes[64];
  choose_bytes(&c->source, bytes, sizeof(bytes));
  memory_put(memory_any(&c->source), bytes, 1 + choose_below(&c->source, sizeof(bytes)));
}

/* kvm_run is the client's to write, anywhere and at any time. */
static void write_run(struct caller *c) {
  struct source *s = &c->source;
  u8 *window = memory_window((unsigned)choose_below(s, WINDOWS));
  struct kvm_run run;
  if (!choose_below(s, 8) || !memory_get(&run, window, sizeof(run))) {
    u64 v = choose(s);
    memory_put(window + choose_below(s, 3 * PAGE_SIZE), &v, sizeof(v));
    return;
  }
  run.immediate_exit = (u8)choose_below(s, 2);
  run.request_interrupt_window = (u8)choose_below(s, 2);
  run.cr8 = choose_below(s, 20);
  run.kvm_valid_regs = choose_below(s, 9);
  run.kvm_dirty_regs = choose_below(s, 2) ? 0 : choose_below(s, 9);
  memory_put(window, &run, sizeof(run));
}

/* Entries of a dirty ring, given back properly or not. */
static void collect(struct caller *c) {
  struct source *s = &c->source;
  u8 *ring = memory_window((unsigned)choose_below(s, WINDOWS)) + 64 * PAGE_SIZE;
  for (size_t n = choose_below(s, 256); n; n--) {
    struct kvm_dirty_gfn e;
    u8 *at = ring + (n - 1) * sizeof(e);
    if (!memory_get(&e, at, sizeof(e))) break;
    if (!choose_below(s, 32)) e.slot = (u32)choose_odd(s), e.offset = choose_odd(s);
    e.flags = KVM_DIRTY_GFN_F_RESET;
    memory_put(at, &e, sizeof(e));
  }
  uvirt_ioctl(look(s, FD_VM), KVM_RESET_DIRTY_RINGS, NULL);
}

static void map_window(struct caller *c) {
  struct source *s = &c->source;
  if (choose_below(s, 3))
    map_vcpu(s, look(s, FD_VCPU));
  else
    munmap(memory_window((unsigned)choose_below(s, WINDOWS)), (1 + choose_below(s, 4)) * PAGE_SIZE);
  int kind = (int)choose_below(s, FD_KINDS); /* not mapped: refused */
  if (kind != FD_VCPU && uvirt_mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, look(s, (enum fd_kind)kind), 0) != MAP_FAILED)
    abort();
}

static void close_one(struct caller *c) {
  struct source *s = &c->source;
  enum fd_kind kind = (enum fd_kind)(1 + choose_below(s, FD_KINDS - 1));
  if (choose_below(s, 2)) {
    duplicate(s, kind);
    return;
  }
  int fd = atomic_exchange(&place[kind][choose_below(s, PLACES)], -1);
  if (fd >= 0) uvirt_close(fd);
}

static void read_stats(struct caller *c) {
  struct source *s = &c->source;
  u8 buffer[512];
  struct kvm_stats_header head;
  int fd = atomic_exchange(&place[FD_STATS][0], -1);
  if (fd < 0) return;
  if (pread(fd, &head, sizeof(head), 0) != sizeof(head) || !head.num_desc || head.data_offset < head.desc_offset) abort();
  off_t at = choose_below(s, 2) ? (off_t)choose_below(s, 8192) : (off_t)choose_odd(s);
  if (pread(fd, buffer, 1 + choose_below(s, sizeof(buffer)), at) > (ssize_t)sizeof(buffer)) abort();
  if (lseek(fd, at, SEEK_SET) == at && read(fd, buffer, sizeof(buffer)) > (ssize_t)sizeof(buffer)) abort();
  if (write(fd, buffer, 1) != -1) abort();
  put(s, FD_STATS, fd);
}

static void signal_event(struct caller *c) {
  u64 n = 1 + choose_below(&c->source, 2);
  int fd = c->eventfds[choose_below(&c->source, EVENTFDS)];
  if (choose_below(&c->source, 4)) {
    if (write(fd, &n, sizeof(n)) != sizeof(n)) return;
  } else if (read(fd, &n, sizeof(n)) < 0) {
    return;
  }
}

static const struct {
  unsigned weight;
  void (*fn)(struct caller *c);
} deeds[] = {
    {32, any_ioctl}, {16, run},      {6, start_again}, {4, disturb},      {3, write_memory}, {4, write_run}, {2, collect},
    {2, map_window}, {2, close_one}, {2, read_stats},  {3, signal_event}, {1, new_vm},       {1, new_vcpu},
};

static void do_something(struct caller *c) {
  unsigned total = 0;
  for (unsigned k = 0; k < ARRAY_SIZE(deeds); k++) total += deeds[k].weight;
  unsigned at = (unsigned)choose_below(&c->source, total), k = 0;
  for (; at >= deeds[k].weight; k++) at -= deeds[k].weight;
  deeds[k].fn(c);
}

/* ---- threads ---- */

static _Atomic unsigned working;

static void *work(void *arg) {
  struct caller *c = arg;
  unsigned ops = 1 + (unsigned)choose_below(&c->source, OPS);
  while (ops--) do_something(c);
  atomic_fetch_sub(&working, 1);
  return NULL;
}

static void on_kick(int sig) {}

static void run_threads(struct caller *c) {
  pthread_t thread[THREADS];
  struct timespec wait = {.tv_nsec = KICK_NS};
  atomic_store(&working, THREADS);
  for (unsigned n = 0; n < THREADS; n++)
    if (pthread_create(&thread[n], NULL, work, &c[n])) abort();
  while (atomic_load(&working)) {
    nanosleep(&wait, NULL);
    for (unsigned n = 0; n < THREADS; n++) pthread_kill(thread[n], SIGUSR1);
  }
  for (unsigned n = 0; n < THREADS; n++) pthread_join(thread[n], NULL);
}

/* ---- what may be left ---- */

static unsigned count_descriptors(bool print) {
  unsigned n = 0;
  char to[64];
  DIR *d = opendir("/proc/self/fd");
  if (!d) abort();
  for (struct dirent *e; (e = readdir(d)); n++) {
    ssize_t len = print ? readlinkat(dirfd(d), e->d_name, to, sizeof(to)) : 0;
    if (len > 0) fprintf(stderr, "%s -> %.*s\n", e->d_name, (int)len, to);
  }
  closedir(d);
  return n;
}

static unsigned count_mappings(const char *of) {
  char line[512];
  unsigned n = 0;
  FILE *f = fopen("/proc/self/maps", "re");
  if (!f) abort();
  while (fgets(line, sizeof(line), f)) n += strstr(line, of) != NULL;
  fclose(f);
  return n;
}

static void check_nothing_left(unsigned descriptors) {
  static unsigned inputs;
  unsigned now = count_descriptors(false);
  if (now != descriptors) {
    count_descriptors(true);
    fprintf(stderr, "%u descriptors before, %u after\n", descriptors, now);
    abort();
  }
  if (inputs++ % CHECK_MAPS_EVERY == 0 && count_mappings("kvm-vcpu")) {
    fprintf(stderr, "a vCPU's pages are still mapped\n");
    abort();
  }
}

/* ---- the target ---- */

static void close_all(void) {
  for (unsigned kind = 0; kind < FD_KINDS; kind++)
    for (unsigned n = 0; n < PLACES; n++) {
      int fd = atomic_exchange(&place[kind][n], -1);
      if (fd >= 0 && uvirt_close(fd)) abort();
    }
}

static void one_input(const uint8_t *data, size_t size) {
  struct caller c[THREADS] = {0};
  u64 seed = size;
  for (size_t n = 0; n < size; n++) seed = seed * 0x100000001b3ull ^ data[n];
  for (unsigned n = 0; n < EVENTFDS; n++) eventfds[n] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (n & 1 ? EFD_SEMAPHORE : 0));
  for (unsigned n = 0; n < THREADS; n++) {
    c[n].source = (struct source){.data = data + size / THREADS * n, .left = size / THREADS, .state = mix(&seed)};
    c[n].eventfds = eventfds;
    if (!caller_start(&c[n])) abort();
  }
  struct source first = {.state = mix(&seed)};
  memory_start(&first);
  guest_put_tables();
  place[FD_SYSTEM][0] = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  for (unsigned n = 1; n < PLACES; n++) place[FD_SYSTEM][n] = uvirt_open("/dev/kvm", O_RDWR);
  add_vm(&first);
  run_threads(c);
  close_all();
  memory_end();
  for (unsigned n = 0; n < EVENTFDS; n++) close(eventfds[n]);
  for (unsigned n = 0; n < THREADS; n++) caller_end(&c[n]);
}

static void prepare(void) {
  struct sigaction kick = {.sa_handler = on_kick};
  sigaction(SIGUSR1, &kick, NULL);
  for (unsigned kind = 0; kind < FD_KINDS; kind++)
    for (unsigned n = 0; n < PLACES; n++) place[kind][n] = -1;
  int system = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  args_learn(system);
  /* What the library opens once and keeps. */
  int vm = uvirt_ioctl(system, KVM_CREATE_VM, NULL), vcpu = uvirt_ioctl(vm, KVM_CREATE_VCPU, NULL);
  uvirt_close(vcpu), uvirt_close(vm), uvirt_close(system);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static unsigned descriptors;
  if (!descriptors) {
    prepare();
    descriptors = count_descriptors(false);
  }
  one_input(data, size);
  check_nothing_left(descriptors);
  return 0;
}

const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static uint8_t input[1];
  if (i >= 8) return NULL;
  input[0] = (uint8_t)i;
  *size = sizeof(input);
  return input;
}
