/* kvmclock with more vCPUs than one page of clock areas has room for: each reads its own area while all run, and no reading is
 * older than one that any of them had before.  Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW. */
#include <pthread.h>
#include <unistd.h>
#include "inside.h"

#define CPUS        72u
#define READS       20000u
#define AREAS       GUEST_DATA /* 64 bytes each: two pages */
#define STACKS      0x300000ul
#define SYSTEM_TIME 0x4b564d01u

static volatile u64 last;
static volatile u32 registered, backward, unstable, read_by[CPUS];

struct area {
  volatile u32 version, pad;
  volatile u64 tsc_timestamp, system_time;
  volatile u32 mul;
  volatile signed char shift;
  volatile u8 flags;
};

static u64 now(const struct area *a) {
  u64 t;
  u32 version;
  do {
    version = a->version;
    __asm__ volatile("" ::: "memory");
    u64 delta = rdtsc() - a->tsc_timestamp;
    delta = a->shift < 0 ? delta >> -a->shift : delta << a->shift;
    t = a->system_time + (u64)((unsigned __int128)delta * a->mul >> 32);
    __asm__ volatile("" ::: "memory");
  } while (version & 1 || version != a->version);
  return t;
}

static void reader(u64 id) {
  struct area *a = (struct area *)(AREAS + 64 * id);
  wrmsr(SYSTEM_TIME, (u64)a | 1);
  __atomic_fetch_add(&registered, 1, __ATOMIC_SEQ_CST);
  report(1); /* the area is filled at the next entry at the latest */
  for (u32 n = 0; n < READS; n++) {
    u64 before = __atomic_load_n(&last, __ATOMIC_SEQ_CST), t = now(a), seen = before;
    if (t < before) __atomic_fetch_add(&backward, 1, __ATOMIC_SEQ_CST);
    while (seen < t && !__atomic_compare_exchange_n(&last, &seen, t, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) relax();
  }
  if (!(a->flags & 1)) __atomic_fetch_add(&unstable, 1, __ATOMIC_SEQ_CST);
  read_by[id] = READS;
  done();
}

static volatile u64 seen_time;

/* As Linux' vDSO: the first vCPU's area is everyone's. */
static void onlooker(u64 id) {
  wrmsr(SYSTEM_TIME, (AREAS + 64 * id) | 1);
  report(1);
  report(1);
  seen_time = now((struct area *)AREAS);
  done();
}

static void set_up(struct guest *g, const struct kvm_sregs *from, void (*function)(u64 id), u64 id) {
  struct kvm_sregs s = guest_sregs(g);
  struct kvm_mp_state running = {.mp_state = KVM_MP_STATE_RUNNABLE};
  u64 base = s.apic_base;
  s = *from;
  s.apic_base = base;
  guest_set_sregs(g, &s);
  struct kvm_regs r = {.rip = (u64)(uintptr_t)function, .rflags = 2, .rdi = id, .rsp = STACKS + 0x1000 * (id + 1) - 8};
  guest_set_regs(g, &r);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MP_STATE, &running), 0);
}

static void *run(void *arg) {
  CHECK_EQ(guest_next(arg), 1);
  return (void *)(uintptr_t)guest_next(arg);
}

static void areas_in_two_pages(void) {
  struct guest *g[CPUS];
  pthread_t thread[CPUS];
  last = registered = backward = unstable = 0;
  g[0] = start_function((void (*)(void))(uintptr_t)reader);
  struct kvm_sregs s = guest_sregs(g[0]);
  for (unsigned k = 0; k < CPUS; k++) {
    if (k) g[k] = guest_add_cpu(g[0], k);
    set_up(g[k], &s, reader, k);
  }
  for (unsigned k = 0; k < CPUS; k++) CHECK_EQ(pthread_create(&thread[k], NULL, run, g[k]), 0);
  for (unsigned k = 0; k < CPUS; k++) {
    void *r;
    pthread_join(thread[k], &r);
    CHECK_EQ((uintptr_t)r, DONE);
    CHECK_EQ(read_by[k], READS);
  }
  CHECK_EQ(registered, CPUS);
  CHECK_EQ(backward, 0);
  CHECK_EQ(unstable, 0);
  /* One pair of counter and time for all. */
  for (unsigned k = 1; k < CPUS; k++) {
    CHECK_EQ(guest_read(g[0], AREAS + 64 * k + 8, 8), guest_read(g[0], AREAS + 8, 8));
    CHECK_EQ(guest_read(g[0], AREAS + 64 * k + 16, 8), guest_read(g[0], AREAS + 16, 8));
  }
  for (unsigned k = CPUS - 1; k; k--) guest_free_cpu(g[k]);
  guest_free(g[0]);
}

/* The clock is set while nobody runs, and the second vCPU is the first to run again. */
static void set_for_all(void) {
  struct guest *g[2];
  struct kvm_clock_data data = {.clock = 5000000000000000ull};
  g[0] = start_function((void (*)(void))(uintptr_t)onlooker);
  g[1] = guest_add_cpu(g[0], 1);
  struct kvm_sregs s = guest_sregs(g[0]);
  for (unsigned k = 0; k < 2; k++) {
    set_up(g[k], &s, onlooker, k);
    CHECK_EQ(guest_next(g[k]), 1);
    CHECK_EQ(guest_next(g[k]), 1);
  }
  CHECK_EQ(guest_ioctl(g[0]->vm, KVM_SET_CLOCK, &data), 0);
  CHECK_EQ(guest_next(g[1]), DONE);
  CHECK(seen_time >= data.clock && seen_time - data.clock < 3600000000000ull);
  guest_free_cpu(g[1]);
  guest_free(g[0]);
}

GUEST_MAIN({"areas-in-two-pages", areas_in_two_pages}, {"set-for-all", set_for_all})
