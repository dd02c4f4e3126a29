/** Errors of the operating system, as people are told of them. */
import { expect, test } from 'vitest';
import { atPath } from '../../services/lib/process/os-errors.ts';

test.each([
  ['ENOSPC', 'write', 'path_unusable', 'its disk is full'],
  ['EPIPE', 'write', 'address_unusable', 'the connection was closed'],
  ['EADDRINUSE', 'listen', 'address_in_use', 'another process listens there'],
])(
  '%s at something open, which the system gives no path with, tells what is at fault',
  async (code, syscall, kind, reason) => {
    const error = Object.assign(new Error(code), { code, syscall });
    await expect(atPath('--to run', () => Promise.reject(error))).rejects.toMatchObject({
      code: kind,
      message: `--to run: ${reason} (${code})`,
    });
  },
);
