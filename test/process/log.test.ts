/** A disk that is full costs lines of a log, and nothing else. On the built files (`npm test` builds first). */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const WRITES = `
  const { createLogger } = await import(process.argv[1]);
  const log = createLogger('test', 'info');
  for (let i = 0; i < 50_000; i++) log.info({ i }, 'a line of a log that nobody will read');
  log.fatal('the last one');
  process.stdout.write(String(process.memoryUsage().heapUsed < 200e6));
`;

it('writes on where stderr takes nothing, and keeps little of it', async () => {
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
