/** The log where lines cannot be written, on the built files (`npm test` builds first); and where too many would be. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it, onTestFinished, vi } from 'vitest';
import { throttled } from '../../services/lib/process/log.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const WRITES = `
  const { createLogger } = await import(process.argv[1]);
  const log = createLogger('test', 'info');
  for (let i = 0; i < 50_000; i++) log.info({ i }, 'a line of a log that nobody will read');
  log.fatal('the last one');
  process.stdout.write(String(process.memoryUsage().heapUsed < 200e6));
`;

it('the log writes on where stderr takes nothing, and keeps little of it', async () => {
  await using full = await open('/dev/full', 'w');
  const log = join(PACKAGE_ROOT, 'dist/services/lib/process/log.js');
  const child = spawn(process.execPath, ['--input-type=module', '-e', WRITES, log], {
    stdio: ['ignore', 'pipe', full.fd],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let said = '';
  child.stdout!.on('data', (text) => {
    said += text;
  });
  const [code] = await once(child, 'close');
  expect([said, code]).toEqual(['true', 0]);
});

it('the log lets through the first of many lines, one line per window for the rest, and the first after a quiet window', () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const written: [string, number][] = [];
  const write = throttled(1_000, (line: string, count) => written.push([line, count]));
  for (const line of ['a', 'b', 'c']) write(line);
  expect(written).toEqual([['a', 1]]);
  vi.advanceTimersByTime(1_000);
  expect(written).toEqual([
    ['a', 1],
    ['c', 2],
  ]);
  vi.advanceTimersByTime(10_000);
  write('d');
  expect(written.at(-1)).toEqual(['d', 1]);
});
