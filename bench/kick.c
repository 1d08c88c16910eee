/* How long a signal takes to get a vCPU out of a guest that spins: from pthread_kill(3) to the return of KVM_RUN.
 *
 * The program knows only /dev/kvm: `uvirt exec -- kick` measures uvirt, and where there is hardware the same program measures the
 * kernel.  For comparison: the same signal to a thread that spins in its own code.  Prints "BENCH name ns".
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define SAMPLES 4000

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void need(bool ok, const char *what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static atomic_bool came;
static void on_signal(int sig) {
  atomic_store(&came, true);
}

/* ---- what spins ---- */

static struct {
  int vcpu;
  struct kvm_run *run;
} guest;

static void make_guest(const uint8_t *code, size_t len) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
  need(vm >= 0, "/dev/kvm");
  uint8_t *ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(ram + 0x1000, code, len);
  struct kvm_userspace_memory_region region = {.memory_size = 65536, .userspace_addr = (uintptr_t)ram};
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "memory");
  guest.vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  guest.run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
  need(guest.vcpu >= 0 && guest.run != MAP_FAILED, "vCPU");
  struct kvm_sregs sregs;
  ioctl(guest.vcpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  ioctl(guest.vcpu, KVM_SET_SREGS, &sregs);
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rsi = 0x2000};
  ioctl(guest.vcpu, KVM_SET_REGS, &regs);
}

static void spin_in_guest(void) {
  int r = ioctl(guest.vcpu, KVM_RUN, 0);
  need(r == -1 && errno == EINTR, "KVM_RUN");
}

static void spin_here(void) {
  while (!atomic_load_explicit(&came, memory_order_relaxed)) __builtin_ia32_pause();
}

/* ---- measuring ---- */

static _Atomic uint64_t arrived; /* when the spinning ended; 0: it spins */
static atomic_bool spinning, stop;

static void *spinner(void *arg) {
  void (*spin)(void) = (void (*)(void))(uintptr_t)arg;
  while (!atomic_load(&stop)) {
    atomic_store(&came, false);
    atomic_store(&spinning, true);
    spin();
    uint64_t t = now();
    atomic_store(&spinning, false);
    atomic_store(&arrived, t);
    while (atomic_load(&arrived) && !atomic_load(&stop)) __builtin_ia32_pause();
  }
  return NULL;
}

static int compare(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void measure(const char *name, void (*spin)(void)) {
  static uint64_t took[SAMPLES];
  pthread_t thread;
  atomic_store(&stop, false);
  atomic_store(&arrived, 0);
  need(pthread_create(&thread, NULL, spinner, (void *)(uintptr_t)spin) == 0, "thread");
  for (unsigned i = 0; i < SAMPLES; i++) {
    while (!atomic_load(&spinning)) __builtin_ia32_pause();
    uint64_t begin = now(), gap = 20000 + (uint64_t)rand() % 80000; /* well inside the guest */
    while (now() - begin < gap) __builtin_ia32_pause();
    uint64_t t = now();
    pthread_kill(thread, SIGUSR1);
    while (!atomic_load(&arrived)) __builtin_ia32_pause();
    took[i] = atomic_load(&arrived) - t;
    if (i == SAMPLES - 1) atomic_store(&stop, true);
    atomic_store(&arrived, 0);
  }
  pthread_join(thread, NULL);
  qsort(took, SAMPLES, sizeof(took[0]), compare);
  printf("BENCH kick-%s-p50 %.1f\nBENCH kick-%s-p99 %.1f\nBENCH kick-%s-max %.1f\n", name, (double)took[SAMPLES / 2], name,
         (double)took[SAMPLES * 99 / 100], name, (double)took[SAMPLES - 1]);
}

int main(void) {
  static const uint8_t jump[] = {0xeb, 0xfe}; /* jmp $ */
  static const uint8_t string[] = {0xb9, 0xff, 0x7f, 0x31, 0xf6,
                                   0xf3, 0xad, 0xeb, 0xf7}; /* mov cx,7fff; xor si,si; rep lodsw; jmp */
  sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
  measure("native", spin_here);
  make_guest(jump, sizeof(jump));
  measure("guest-loop", spin_in_guest);
  make_guest(string, sizeof(string));
  measure("guest-string", spin_in_guest);
  return 0;
}
