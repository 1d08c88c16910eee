/* The file in which a process shows the statistics of its virtual machines to other programs of the same user.
 *
 * It is a memfd named UVIRT_STATS_FILE, found among the links of /proc/PID/fd.  It is an array of slots of UVIRT_STATS_SLOT bytes; a slot is
 * in use where the num_desc of the struct kvm_stats_header at its start is not 0, and then laid out as KVM_GET_STATS_FD's file is.  The id string
 * says whose it is: "kvm-PID" a machine's, "kvm-PID/vcpu-N" a vCPU's.  Once the program itself has asked for an object's statistics, they are
 * found in a memfd of their own, UVIRT_STATS_OWN_FILE, and no longer here.
 */
#ifndef UVIRT_STATS_H
#define UVIRT_STATS_H

#define UVIRT_STATS_FILE     "uvirt-stats"
#define UVIRT_STATS_OWN_FILE "kvm-stats"
#define UVIRT_STATS_SLOT     0x4000u

#endif
