/* For the clients: programs that know the kernel's KVM and nothing of uvirt. */
#ifndef EXEC_CLIENT_H
#define EXEC_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                                         \
  do {                                                                                                                           \
    if (!(condition)) {                                                                                                          \
      int errno_ = errno;                                                                                                        \
      fprintf(stderr, "%s:%d: %s: not so: %s (errno %d)\n", __FILE__, __LINE__, __func__, #condition, errno_);                   \
      _exit(1);                                                                                                                  \
    }                                                                                                                            \
  } while (0)

#define CHECK_ERRNO(call, expected)                                                                                              \
  do {                                                                                                                           \
    errno = 0;                                                                                                                   \
    CHECK((long)(call) == -1);                                                                                                   \
    CHECK(errno == (expected));                                                                                                  \
  } while (0)

/* What every descriptor of /dev/kvm answers, and no other. */
#define IS_KVM(fd) (ioctl(fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION)

static inline int open_kvm(void) {
  int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  return fd;
}

/* A VM of one vCPU with 64 KiB of memory, which runs real-mode code at 0x1000. */
struct machine {
  int kvm, vm, vcpu;
  uint8_t *ram;
  struct kvm_run *run;
};

#define RAM_SIZE 65536u
#define CODE     0x1000u

/* jmp $; hlt; in al,0x10 and hlt */
static const uint8_t spin_code[] = {0xeb, 0xfe}, halt_code[] = {0xf4}, port_code[] = {0xe4, 0x10, 0xf4};

static inline void start_at_code(const struct machine *m) {
  struct kvm_sregs sregs;
  struct kvm_regs regs = {.rip = CODE, .rflags = 2};
  CHECK(ioctl(m->vcpu, KVM_GET_SREGS, &sregs) == 0);
  sregs.cs.base = sregs.cs.selector = 0;
  CHECK(ioctl(m->vcpu, KVM_SET_SREGS, &sregs) == 0);
  CHECK(ioctl(m->vcpu, KVM_SET_REGS, &regs) == 0);
}

static inline struct machine make_machine(const uint8_t *code, size_t len) {
  struct machine m = {.kvm = open_kvm()};
  m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
  CHECK(m.vm >= 0);
  m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(m.ram != MAP_FAILED);
  memcpy(m.ram + CODE, code, len);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)m.ram};
  CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
  m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0);
  CHECK(m.vcpu >= 0);
  int size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  CHECK(size > 0);
  m.run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
  CHECK(m.run != MAP_FAILED);
  start_at_code(&m);
  return m;
}
#define MACHINE(code) make_machine(code, sizeof(code))

static inline bool runs_to_halt(const struct machine *m) {
  start_at_code(m);
  return ioctl(m->vcpu, KVM_RUN, 0) == 0 && m->run->exit_reason == KVM_EXIT_HLT;
}

static inline void sleep_ms(unsigned ms) {
  nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

/* The exit status of a child; 128 and its signal where one killed it. */
static inline int wait_for(pid_t pid) {
  int status;
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Runs fn in a forked child; its exit status is 0 unless fn ends it otherwise. */
static inline int in_child(void (*fn)(void *arg), void *arg) {
  pid_t pid = fork();
  if (pid == 0) {
    fn(arg);
    _exit(0);
  }
  return wait_for(pid);
}

#endif
