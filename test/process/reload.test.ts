/** Files that are read again, on a real file system. */
import { readFile, writeFile } from 'node:fs/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import { ServingError } from '../../services/lib/process/errors.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { reloadOnChange } from '../../services/lib/process/reload.ts';
import { keepingLog } from '../support/keeping-log.ts';
import { mountSecret, type SecretMount } from '../support/secret-mount.ts';

/** Nobody looks by itself within a test, unless it says so. */
const NEVER_MS = 2 ** 30;

interface Options {
  readonly lookEveryMs?: number;
  /** Called when the files are read, after they have been read. */
  readonly onRead?: () => unknown;
}

/** Follows `cert` and `key`, which are right when both hold the same text. */
async function follow(mount: SecretMount, { lookEveryMs = NEVER_MS, onRead }: Options = {}) {
  const draining = new AbortController();
  onTestFinished(() => draining.abort());
  const hangups: (() => void)[] = [];
  const lines: Record<string, unknown>[] = [];
  const used: string[] = [];
  const files = ['cert', 'key'].map((name) => mount.path(name));
  const reload = async () => {
    const [cert, key] = await Promise.all(files.map((path) => readFile(path, 'utf8')));
    await onRead?.();
    if (cert !== key) throw new ServingError('config_invalid', `${cert} does not belong to ${key}`);
    used.push(cert!);
    return { cert };
  };
  const life = { draining: draining.signal, onHangup: (run: () => void) => hangups.push(run) };
  const failuresBefore = await failures();
  await reloadOnChange({ name: 'tls', files, reload }, life, keepingLog(lines), { quietMs: 20, lookEveryMs });
  const hangUp = () => hangups.forEach((run) => void run());
  return { draining, lines, used, hangUp, failed: async () => (await failures()) - failuresBefore };
}

async function failures(): Promise<number> {
  const { values } = await metrics.reloadFailures.get();
  return values.find(({ labels }) => labels['files'] === 'tls')?.value ?? 0;
}

async function succeededAt(): Promise<number> {
  const { values } = await metrics.reloadSuccess.get();
  return values.find(({ labels }) => labels['files'] === 'tls')?.value ?? 0;
}

async function mounted(text: string): Promise<SecretMount> {
  const mount = await mountSecret({ cert: text, key: text });
  onTestFinished(() => mount.remove());
  return mount;
}

const WAIT = { timeout: 20_000 };

test('files of a Secret that Kubernetes swaps are read again each time', async () => {
  const mount = await mounted('1');
  const { used } = await follow(mount);
  for (const text of ['2', '3', '4']) {
    await mount.swap({ cert: text, key: text });
    await vi.waitUntil(() => used.at(-1) === text, WAIT);
  }
  expect(used).toEqual(['1', '2', '3', '4']);
});

test('files that are written in their place are read again, and a pair counts when both are there', async () => {
  const mount = await mounted('1');
  const { used } = await follow(mount);
  await writeFile(mount.path('cert'), '2');
  await writeFile(mount.path('key'), '2');
  await vi.waitUntil(() => used.at(-1) === '2', WAIT);
});

test('files that are wrong leave those before in use: one line and one count, and the next right ones are taken', async () => {
  const mount = await mounted('1');
  const { used, lines, hangUp, failed } = await follow(mount);
  const atFirst = await succeededAt();
  await mount.swap({ cert: '2', key: 'other' });
  const wrong = () => lines.filter(({ level }) => level === 'error');
  await vi.waitUntil(() => wrong().length === 1, WAIT);
  expect(wrong()[0]).toMatchObject({ err: { code: 'config_invalid', message: '2 does not belong to other' } });
  expect([used, await failed(), await succeededAt()]).toEqual([['1'], 1, atFirst]);
  hangUp();
  await vi.waitUntil(() => wrong().length === 2, WAIT);
  await mount.swap({ cert: '3', key: '3' });
  await vi.waitUntil(() => used.at(-1) === '3', WAIT);
  expect([used, await failed()]).toEqual([['1', '3'], 2]);
  expect(await succeededAt()).toBeGreaterThanOrEqual(atFirst);
});

test('SIGHUP has files read again that have not changed', async () => {
  const { used, hangUp, lines } = await follow(await mounted('1'));
  hangUp();
  await vi.waitUntil(() => used.length === 2, WAIT);
  expect(lines).toMatchObject([{ level: 'info', cert: '1' }]);
});

test('what was wrong and becomes right by itself is taken at the next look, and counted once', async () => {
  const mount = await mounted('1');
  let isValid = true;
  const onRead = () => {
    if (!isValid) throw new ServingError('config_invalid', 'it is not valid yet');
  };
  const { used, failed } = await follow(mount, { lookEveryMs: 5, onRead });
  isValid = false;
  await mount.swap({ cert: '2', key: '2' });
  await vi.waitUntil(async () => (await failed()) === 1, WAIT);
  isValid = true;
  await vi.waitUntil(() => used.at(-1) === '2', WAIT);
  expect([used, await failed()]).toEqual([['1', '2'], 1]);
});

test('files that change while they are read are read once more', async () => {
  const mount = await mounted('1');
  let swaps = 0;
  const onRead = async () => {
    if (swaps++ === 1) await mount.swap({ cert: '3', key: '3' });
  };
  const { used } = await follow(mount, { onRead });
  await mount.swap({ cert: '2', key: '2' });
  await vi.waitUntil(() => used.at(-1) === '3', WAIT);
});

test('a process that drains reads nothing any more', async () => {
  const mount = await mounted('1');
  const { used, draining } = await follow(mount, { lookEveryMs: 1 });
  draining.abort();
  await mount.swap({ cert: '2', key: '2' });
  for (let rounds = 0; rounds < 50; rounds++) await new Promise((resolve) => setImmediate(resolve));
  expect(used).toEqual(['1']);
});

test('where no files are named nothing is followed', async () => {
  const life = { draining: new AbortController().signal, onHangup: () => expect.fail('nothing to reload') };
  await reloadOnChange({ name: 'tls', files: ['', ''], reload: expect.fail }, life, keepingLog([]));
});
