/** The systems of the drills, of real processes: that a drill on each ends as promised, and could end otherwise. */
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { COLOCATED_DRILLS, DRILLS, PARTITION_DRILLS, REDIS_DRILLS } from '../../../bench/drills/drills.ts';
import { runDrill } from '../../../bench/drills/judge.ts';
import { Network } from '../../../bench/drills/network.ts';
import { runSoak } from '../../../bench/drills/soak.ts';
import { type Ground, stagesOf } from '../../../bench/drills/stages.ts';
import { makeReferences, type Reference } from '../../../bench/drills/streams.ts';
import { openModel } from '../../../bench/system/model.ts';
import { PromptMaker } from '../../../bench/system/prompts.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { startRedis } from '../../support/redis.ts';

const MODEL = join(import.meta.dirname, '..', '..', '..', 'models', 'tiny-coder');
const HOW = { rate: 8, seed: 1, count: 1, seconds: 1 };

let dir: string;
let path: string;
const bundle = () => join(dir, 'bundle');
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-drills-'));
  path = join(dir, 'repo');
  await mkdir(path);
  for (const name of ['cart', 'order', 'stock']) {
    const code = Array.from({ length: 30 }, (_, i) => `def ${name}_${i}(value):\n    return value * ${i}\n`);
    await writeFile(join(path, `${name}.py`), code.join('\n'));
  }
  await exportBundle({ llm: MODEL, to: bundle(), precision: 'fp32' });
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function open(name: string): Promise<{ ground: Ground; references: Reference[] } | string> {
  const stage = stagesOf({ bundle: bundle() }, { data: join(dir, 'data'), repo: 'drilled', path }).find(
    (stage) => stage.name === name,
  );
  const ground = await stage!.open();
  if (typeof ground === 'string') return ground;
  onTestFinished(() => ground.close());
  const prompts = await PromptMaker.load('drilled', path, await loadTokenizer(MODEL));
  return { ground, references: await makeReferences(ground.fleet.url, prompts, 2) };
}

async function must(name: string) {
  const opened = await open(name);
  if (typeof opened === 'string') throw new Error(opened);
  return opened;
}

test('colocated workers: killed, and no token is lost; an answer that is another one is noticed', async () => {
  const { ground, references } = await must('colocated workers');
  expect(ground.fleet.of('colocated')).toHaveLength(2);
  const result = await runDrill(COLOCATED_DRILLS[0]!, references, ground, { ...HOW, count: 2 });
  expect(result).toMatchObject({ name: 'kill -9 colocated', disturbances: 2, failed: {}, broken: '' });
  expect(result.note).toMatch(/^[1-9]\d* \+ [1-9]\d* requests went on at the other worker$/);
  const others = references.map((reference) => ({ ...reference, tokenIds: [...reference.tokenIds, 0] }));
  const { broken } = await runDrill(DRILLS[0]!, others, ground, HOW);
  expect(broken).toMatch(/tokens lost/);
});

test('a system: an indexer that stands still takes its upload afterwards; clients leave in the middle', async () => {
  const { ground, references } = await must('a system');
  const run = (name: string, rate = HOW.rate) => {
    const drill = DRILLS.find((drill) => drill.name.startsWith(name));
    return runDrill(drill!, references, ground, { ...HOW, rate });
  };
  const { note, failed } = await run('SIGSTOP indexer');
  expect({ note, failed }).toEqual({
    note: '1 uploads struck, 1 of them succeeded; the next ones came through',
    failed: {},
  });
  const { left, broken } = await run('clients that vanish', 20);
  expect(broken).toBe('');
  expect(left).toBeGreaterThan(1);
});

test('a Redis: killed, and completions go on without context until it is back', async () => {
  await (await startRedis()).stop(); // fetches it where there is none
  const { ground, references } = await must('a Redis');
  const result = await runDrill(REDIS_DRILLS[0]!, references, ground, HOW);
  expect(result).toMatchObject({ disturbances: 1, failed: {}, lostTokens: 0, doubledTokens: 0, broken: '' });
  expect(result.note).toMatch(/^context again \d+ ms after its restart; \d+ answered without context$/);
});

describe('machines', () => {
  /** Retransmissions of the connection that ends at a port, as the kernel counts them. */
  async function retransmissions(port: number): Promise<number> {
    const lines = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map((line) => line.trim().split(/\s+/));
    const found = lines.find(([, , remote]) =>
      remote?.endsWith(`:${port.toString(16).toUpperCase().padStart(4, '0')}`),
    );
    return Number.parseInt(found?.[6] ?? '0', 16);
  }

  test('a pulled cable loses packets and hangs up on nobody; they come once it is plugged in', async () => {
    const network = await Network.open().catch((error: Error) => error.message);
    if (typeof network === 'string') return expect(network).toMatch(/^needs network namespaces \(.+\)$/);
    onTestFinished(() => network.close());
    const { host, through, cut, heal } = await network.join();
    const code = `const server = require('net').createServer((socket) => socket.pipe(socket));
      server.listen(0, '${host}', () => console.log(server.address().port));`;
    const [file, ...words] = [...through, process.execPath, '-e', code];
    const child = execa(file!, words, { reject: false, buffer: false });
    onTestFinished(async () => {
      child.kill('SIGKILL');
      await child;
    });
    const port = Number(String((await once(child.stdout, 'data'))[0]));
    const socket = connect(port, host);
    onTestFinished(() => void socket.destroy());
    const say = (text: string) => void socket.write(text);
    const heard = async () => String((await once(socket, 'data'))[0]);
    say('one');
    expect(await heard()).toBe('one');
    await cut();
    say('two');
    await expect.poll(() => retransmissions(port), { timeout: 20_000 }).toBeGreaterThan(1);
    expect(socket.destroyed || socket.readableEnded).toBe(false);
    const answer = heard();
    await heal();
    expect(await answer).toBe('two');
  });

  test('are gone with the next run where a run was killed', async () => {
    const gone = await execa(process.execPath, ['-e', 'console.log(process.pid)']);
    const abandoned = await Network.open(Number(gone.stdout)).catch((error: Error) => error.message);
    if (typeof abandoned === 'string') return expect(abandoned).toMatch(/^needs network namespaces \(.+\)$/);
    onTestFinished(() => abandoned.close());
    const links = async () => (await execa('ip', ['link', 'show'])).stdout;
    expect(await links()).toContain(`lcd${gone.stdout}b`);
    const network = await Network.open();
    onTestFinished(() => network.close());
    expect(await links()).not.toMatch(`lcd${gone.stdout}`);
    expect((await execa('ip', ['netns', 'list'])).stdout).not.toMatch(`lcd${gone.stdout}`);
    expect(await links()).toContain(`lcd${process.pid}b`);
  });

  test('workers on them serve; one whose cable is pulled costs no token', async () => {
    const opened = await open('machines');
    if (typeof opened === 'string') return expect(opened).toMatch(/^needs network namespaces \(.+\)$/);
    const { ground, references } = opened;
    const [near, far] = ground.fleet.of('decode').map(({ process }) => process.address.split(':')[0]);
    expect(near).not.toBe(far);
    const result = await runDrill(PARTITION_DRILLS[1]!, references, ground, HOW);
    expect(result).toMatchObject({ disturbances: 1, failed: {}, broken: '' });
    expect(result.ok).toBeGreaterThan(0);
  });
});

test('a soak sends all kinds of its mix, and nothing of it is lost', async () => {
  const model = await openModel(bundle(), { data: dir, precision: 'fp32' });
  const how = { path, repo: 'drilled', data: join(dir, 'data'), rate: 20, seed: 1, restartEverySeconds: 2 };
  const result = await runSoak(model, { ...how, minutes: 0.07, onProgress: () => {} });
  expect(result).toMatchObject({ failed: {}, lostTokens: 0, doubledTokens: 0, broken: '' });
  const { completions, keystrokes, choices, uploads } = result.mix!;
  for (const { ok } of [completions, keystrokes, choices, uploads]) expect(ok).toBeGreaterThan(0);
  expect(result.sent).toBe(completions.sent + keystrokes.sent + choices.sent + uploads.sent);
  expect(keystrokes.sent % 3).toBe(0);
});
