/* Descriptors duplicated, closed by number and in ranges, read and written. */
#include <linux/close_range.h>
#include <poll.h>
#include <sys/resource.h>
#include "client.h"

static void duplicates(void) {
  struct machine m = MACHINE(halt_code);
  int copies[] = {
      dup(m.vcpu), dup2(m.vcpu, 70), dup3(m.vcpu, 71, O_CLOEXEC), fcntl(m.vcpu, F_DUPFD, 80), fcntl(m.vcpu, F_DUPFD_CLOEXEC, 90),
  };
  for (int i = 0; i < 5; i++) CHECK(copies[i] >= 0);
  CHECK(copies[1] == 70 && copies[2] == 71 && copies[3] >= 80 && copies[4] >= 90);
  CHECK(fcntl(71, F_GETFD) == FD_CLOEXEC);
  close(m.vcpu);
  m.vcpu = copies[3];
  CHECK(runs_to_halt(&m)); /* the vCPU lives on behind its copies */
  void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, copies[0], 0);
  CHECK(p != MAP_FAILED && ((struct kvm_run *)p)->exit_reason == KVM_EXIT_HLT);
  munmap(p, 4096);
  for (int i = 0; i < 5; i++) CHECK(close(copies[i]) == 0);
  CHECK_ERRNO(dup(m.vcpu), EBADF);
  close(m.vm), close(m.kvm);
}

/* dup2 over one of ours closes it; over itself it does nothing. */
static void replaced(void) {
  int kvm = open_kvm(), null = open("/dev/null", O_RDWR);
  CHECK(dup2(kvm, kvm) == kvm && IS_KVM(kvm));
  CHECK_ERRNO(dup2(-1, kvm), EBADF);
  CHECK(IS_KVM(kvm));
  CHECK(dup2(null, kvm) == kvm);
  CHECK_ERRNO(ioctl(kvm, KVM_GET_API_VERSION, 0), ENOTTY);
  CHECK(write(kvm, "x", 1) == 1);
  close(kvm), close(null);
}

/* A VM whose program closes everything above a number keeps working behind a descriptor below it. */
static void closed_in_ranges(void) {
  struct machine m = MACHINE(port_code);
  int vm = dup2(m.vm, 20), vcpu = dup2(m.vcpu, 21);
  CHECK(close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) == 0);
  CHECK(IS_KVM(m.kvm));
  CHECK(close_range(3, 19, 0) == 0 && close_range(22, ~0u, 0) == 0);
  CHECK_ERRNO(ioctl(m.kvm, KVM_GET_API_VERSION, 0), EBADF);
  CHECK(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO);
  closefrom(22);
  for (int fd = 22; fd < 2000; fd++) CHECK_ERRNO(close(fd), EBADF);
  CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_HLT);
  CHECK_ERRNO(close_range(7, 6, 0), EINVAL);
  CHECK_ERRNO(close_range(5, 6, 64), EINVAL);
  closefrom(3);
  CHECK_ERRNO(ioctl(vm, KVM_CHECK_EXTENSION, 3), EBADF);
}

/* What the library keeps for itself survives a program that closes every number there is. */
static void own_descriptors_survive(void) {
  struct machine m = MACHINE(halt_code);
  int vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
  CHECK(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0);
  CHECK(ioctl(vm, KVM_CREATE_PIT2, &(struct kvm_pit_config){0}) == 0);
  uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram};
  CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
  /* The PIC's base to 0x20, all but IRQ 0 masked; the PIT to 1000 Hz; then hlt with interrupts on until the handler writes a
   * port. */
  static const uint8_t code[] = {
      0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xfe,
      0xe6, 0x21, 0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40, 0xfb, 0xf4, 0xeb, 0xfd,
  };
  static const uint8_t handler[] = {0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x10, 0xcf}; /* end of interrupt; out 0x10; iret */
  memcpy(ram + CODE, code, sizeof(code));
  memcpy(ram + 0x2000, handler, sizeof(handler));
  *(uint32_t *)(ram + 4 * 0x20) = 0x2000;
  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  struct kvm_run *run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct machine timer = {.kvm = m.kvm, .vm = vm, .vcpu = vcpu, .ram = ram, .run = run};
  start_at_code(&timer);
  for (int fd = 3; fd < 4096; fd++)
    if (fd != vcpu) close(fd);
  for (int i = 0; i < 3; i++) CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10);
  close(vcpu);
}

static void no_files(void) {
  struct machine m = MACHINE(halt_code);
  char byte = 0;
  int fds[] = {m.kvm, m.vm, m.vcpu};
  for (int i = 0; i < 3; i++) {
    CHECK_ERRNO(read(fds[i], &byte, 1), EINVAL);
    CHECK_ERRNO(write(fds[i], &byte, 1), EINVAL);
    CHECK_ERRNO(pread(fds[i], &byte, 1, 0), EINVAL);
    CHECK_ERRNO(pwrite(fds[i], &byte, 1, 0), EINVAL);
    struct pollfd p = {.fd = fds[i], .events = POLLIN | POLLOUT};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT)); /* files without a poll function are always ready */
  }
  CHECK_ERRNO((intptr_t)mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.kvm, 0), ENODEV);
  CHECK_ERRNO((intptr_t)mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vm, 0), ENODEV);
  struct kvm_stats_header header;
  int stats = ioctl(m.vcpu, KVM_GET_STATS_FD, 0);
  CHECK(stats >= 0);
  CHECK(read(stats, &header, sizeof(header)) == sizeof(header) && header.num_desc > 0);
  CHECK(pread(stats, &header, sizeof(header), 0) == sizeof(header));
  CHECK_ERRNO(write(stats, &header, 1), EBADF);
  close(stats), close(m.vcpu), close(m.vm), close(m.kvm);
}

/* One descriptor at a time: the library may not need more than there are. */
static void few_descriptors(void *arg) {
  struct rlimit few = {.rlim_cur = 32, .rlim_max = 32};
  CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
  struct machine m = MACHINE(halt_code);
  CHECK(runs_to_halt(&m));
  int fd, last = -1;
  while ((fd = dup(m.vm)) >= 0) last = fd;
  CHECK(errno == EMFILE && last > 0);
  CHECK_ERRNO(ioctl(m.vm, KVM_CREATE_VCPU, 1), EMFILE);
  CHECK(runs_to_halt(&m));
}

int main(void) {
  duplicates();
  replaced();
  no_files();
  own_descriptors_survive();
  closed_in_ranges();
  CHECK(in_child(few_descriptors, NULL) == 0);
  return 0;
}
