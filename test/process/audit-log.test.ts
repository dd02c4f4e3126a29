/** The audit log as a file, on a real file system. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { type AuditEntry, NO_AUDIT, openAuditLog } from '../../services/lib/process/audit-log.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { keepingLog } from '../support/keeping-log.ts';

const ENTRY: AuditEntry = {
  action: 'repo.read',
  outcome: 'ok',
  status: 200,
  request_id: 'r1',
  tenant: 'acme',
  key: '0123456789abcdef',
  client: '127.0.0.1',
  repo: 'shop',
  detail: { mode: 'text', chunks: 3 },
};

async function folder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-audit-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

test('every entry is one line of JSON with the same fields, in a file that its user alone can read', async () => {
  const path = join(await folder(), 'audit.log');
  const audit = await openAuditLog(path, 'gateway', keepingLog([]));
  audit.write(ENTRY);
  audit.write({ ...ENTRY, action: 'admin', repo: null, detail: { route: 'GET /metrics' } });
  await audit.close();
  const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
  const [first, second] = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(Object.keys(first!)).toEqual(
    'level time service audit action outcome status request_id tenant key client repo detail msg'.split(' '),
  );
  expect(first).toMatchObject({ ...ENTRY, audit: 1, service: 'gateway', msg: 'audit' });
  expect(first!['time']).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  expect(Object.keys(second!)).toEqual(Object.keys(first!));
  expect((await stat(path)).mode & 0o777).toBe(0o600);
});

test('a file that was there is written on', async () => {
  const path = join(await folder(), 'audit.log');
  for (let starts = 0; starts < 2; starts++) {
    const audit = await openAuditLog(path, 'gateway', keepingLog([]));
    audit.write(ENTRY);
    await audit.close();
  }
  expect((await readFile(path, 'utf8')).trimEnd().split('\n')).toHaveLength(2);
});

test('a file that cannot be written is refused at the start, with its path', async () => {
  const path = join(await folder(), 'audit.log');
  await expect(openAuditLog(join(path, 'in', 'a\0file'), 'gateway', keepingLog([]))).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining('--audit-log'),
  });
  await expect(openAuditLog('/proc/audit.log', 'gateway', keepingLog([]))).rejects.toMatchObject({
    code: 'config_invalid',
  });
});

/** Runs where files cannot grow beyond 1 KiB: what a full disk does to the file, and leaves pipes alone. */
const WRITES = `
  const { openAuditLog } = await import(process.argv[1] + '/audit-log.js');
  const { metrics } = await import(process.argv[1] + '/metrics.js');
  const failures = [];
  const audit = await openAuditLog(process.argv[2], 'gateway', { error: (fields) => failures.push(fields.path) });
  const lost = async () => (await metrics.auditLinesLost.get()).values[0].value;
  const entry = { action: 'admin', detail: {} };
  while ((await lost()) === 0 || failures.length === 0) {
    audit.write(entry);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const first = await lost();
  for (let i = 0; i < 10; i++) audit.write(entry);
  await audit.close();
  console.log(JSON.stringify({ failures, more: (await lost()) - first }));
`;

test('lines that a full disk does not take are counted, the log says so once, and the process goes on', async () => {
  const path = join(await folder(), 'audit.log');
  const built = join(PACKAGE_ROOT, 'dist/services/lib/process');
  const limited = `trap '' XFSZ; ulimit -f 1; exec "$@"`;
  const node = [process.execPath, '--input-type=module', '-e', WRITES, built, path];
  const { stdout } = await promisify(execFile)('bash', ['-c', limited, 'bash', ...node], { timeout: 60_000 });
  expect(JSON.parse(stdout)).toEqual({ failures: [path], more: 10 });
});

test('without a file nothing is written', async () => {
  expect(await openAuditLog('', 'gateway', keepingLog([]))).toBe(NO_AUDIT);
});
