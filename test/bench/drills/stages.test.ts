/**
 * Drills on systems of real processes: a drill on each ends as promised, and notices if the system breaks its promise.
 */
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { ROW_DRILLS } from '../../../bench/drills/bad-rows.ts';
import { COLOCATED_DRILLS, DRILLS, PARTITION_DRILLS, REDIS_DRILLS } from '../../../bench/drills/drills.ts';
import { NamespaceNetwork } from '../../../bench/drills/network.ts';
import { ROLLOUT_DRILLS } from '../../../bench/drills/rollouts.ts';
import { runDrill } from '../../../bench/drills/run-drill.ts';
import { runSoak } from '../../../bench/drills/soak.ts';
import { type Ground, stagesOf } from '../../../bench/drills/stages.ts';
import { makeReferences, type Reference } from '../../../bench/drills/streams.ts';
import { upgradeDrill } from '../../../bench/drills/upgrade.ts';
import { openModel } from '../../../bench/system/model.ts';
import { PromptMaker } from '../../../bench/system/prompts.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { startRedis } from '../../support/redis.ts';

/** Systems of a dozen processes start slowly beside other tests. */
vi.setConfig({ testTimeout: 900_000, hookTimeout: 900_000 });

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
  const ground = await stage!.open([]);
  if (typeof ground === 'string') return ground;
  onTestFinished(() => ground.close());
  const prompts = await PromptMaker.load('drilled', path, await loadTokenizer(MODEL));
  return { ground, references: await makeReferences(ground.fleet, prompts, 2) };
}

async function must(name: string) {
  const opened = await open(name);
  if (typeof opened === 'string') throw new Error(opened);
  return opened;
}

test('killed colocated workers lose no token, and a wrong answer is noticed', async () => {
  const { ground, references } = await must('colocated workers');
  expect(ground.fleet.of('colocated')).toHaveLength(2);
  const result = await runDrill(COLOCATED_DRILLS[0]!, references, ground, { ...HOW, count: 2 });
  expect(result).toMatchObject({ name: 'kill -9 colocated', disturbances: 2, failed: {}, broken: '' });
  expect(result.note).toMatch(/^[1-9]\d* \+ [1-9]\d* requests went on at the other worker$/);
  const others = references.map((reference) => ({ ...reference, tokenIds: [...reference.tokenIds, 0] }));
  const { broken } = await runDrill(DRILLS[0]!, others, ground, HOW);
  expect(broken).toMatch(/tokens lost/);
});

test('a rolling restart of decode workers costs no request anything', async () => {
  const { ground, references } = await must('a rollout');
  expect(ground.fleet.of('gateway')).toHaveLength(2);
  const drill = ROLLOUT_DRILLS.find(({ name }) => name === 'rolling restart of decode')!;
  const result = await runDrill(drill, references, ground, { ...HOW, rate: 1 });
  expect(result).toMatchObject({ disturbances: 2, failed: {}, lostTokens: 0, doubledTokens: 0, broken: '' });
  expect(result.note).toMatch(/^2 drained with exit code 0/);
});

test('a bundle is exchanged under load and back: no request fails, and no answer mixes two bundles', async () => {
  const { ground: first, references } = await must('a system');
  await first.close();
  const stages = stagesOf({ bundle: bundle() }, { data: join(dir, 'data'), repo: 'drilled', path, model: MODEL });
  const ground = await stages.find(({ name }) => name === 'an upgrade')!.open(references);
  if (typeof ground === 'string') throw new Error(ground);
  onTestFinished(() => ground.close());
  const [one, other] = [...ground.references![0]!.byVersion!.values()];
  expect(one).not.toEqual(other);
  // How soon a rollback is in force, a busy machine does not say.
  const result = await runDrill(upgradeDrill(60_000), ground.references!, ground, { ...HOW, rate: 0.5 });
  expect(result).toMatchObject({ failed: {}, lostTokens: 0, doubledTokens: 0 });
  expect(result.note).toMatch(/^indexes made beside the others in .* s; rolled back at both gateways in \d+ ms/);
  const wrong = ground.references!.map((reference) => ({ ...reference, byVersion: new Map() }));
  expect((await runDrill(DRILLS[0]!, wrong, ground, HOW)).broken).toMatch(/tokens doubled/);
});

test('a stopped indexer finishes its upload when it continues, and clients may leave in the middle of a stream', async () => {
  const { ground, references } = await must('a system');
  const run = (name: string, how = HOW) => {
    const drill = DRILLS.find((drill) => drill.name.startsWith(name));
    return runDrill(drill!, references, ground, how);
  };
  const { note, failed } = await run('SIGSTOP indexer');
  expect(failed).toEqual({});
  // On a busy machine some answers go without context, since retrieval has a budget: the note says how many.
  expect(note).toMatch(/^1 uploads struck, 1 of them succeeded; the next uploads succeeded/);
  const { left, broken } = await run('clients that vanish', { ...HOW, rate: 20, seconds: 3 });
  expect(broken).toBe('');
  expect(left).toBeGreaterThan(1);
});

test('completions go on without context while Redis is killed, and have it again afterwards', async () => {
  await (await startRedis()).stop(); // fetches Redis if there is none
  const { ground, references } = await must('a Redis');
  const result = await runDrill(REDIS_DRILLS[0]!, references, ground, HOW);
  expect(result).toMatchObject({ disturbances: 1, failed: {}, lostTokens: 0, doubledTokens: 0, broken: '' });
  expect(result.note).toMatch(
    /^context again \d+ ms after its restart; answered without context: \d+ \(\w+\)(, \d+ \(\w+\))*$/,
  );
});

test('completions go on without rows of Redis whose vectors are not numbers', async () => {
  await (await startRedis()).stop(); // fetches Redis if there is none
  const { ground, references } = await must('a Redis with tenants');
  const drill = ROW_DRILLS.find(({ name }) => name === 'rows that are not numbers')!;
  const { broken, note } = await runDrill(drill, references, ground, HOW);
  expect(broken).toBe('');
  expect(note).toMatch(/^completions went on with /);
});

describe('workers on machines of their own', () => {
  /** Number of retransmissions of the connection to a port, as the kernel counts them. */
  async function retransmissions(port: number): Promise<number> {
    const lines = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map((line) => line.trim().split(/\s+/));
    const found = lines.find(([, , remote]) =>
      remote?.endsWith(`:${port.toString(16).toUpperCase().padStart(4, '0')}`),
    );
    return Number.parseInt(found?.[6] ?? '0', 16);
  }

  test('a pulled cable loses packets and closes no connection, and the data arrives once it is plugged in', async () => {
    const network = await NamespaceNetwork.open().catch((error: Error) => error.message);
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
    await expect.poll(() => retransmissions(port), { timeout: 300_000 }).toBeGreaterThan(1);
    expect(socket.destroyed || socket.readableEnded).toBe(false);
    const answer = heard();
    await heal();
    expect(await answer).toBe('two');
  });

  test('the network of a killed run is removed by the next run', async () => {
    const gone = await execa(process.execPath, ['-e', 'console.log(process.pid)']);
    const abandoned = await NamespaceNetwork.open(Number(gone.stdout)).catch((error: Error) => error.message);
    if (typeof abandoned === 'string') return expect(abandoned).toMatch(/^needs network namespaces \(.+\)$/);
    onTestFinished(() => abandoned.close());
    const links = async () => (await execa('ip', ['link', 'show'])).stdout;
    expect(await links()).toContain(`lcd${gone.stdout}b`);
    const network = await NamespaceNetwork.open();
    onTestFinished(() => network.close());
    expect(await links()).not.toMatch(`lcd${gone.stdout}`);
    expect((await execa('ip', ['netns', 'list'])).stdout).not.toMatch(`lcd${gone.stdout}`);
    expect(await links()).toContain(`lcd${process.pid}b`);
  });

  test('a worker whose cable is pulled costs no token', async () => {
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

test('a soak sends every kind of traffic, and loses nothing of it', async () => {
  const model = await openModel(bundle(), { data: dir, precision: 'fp32' });
  const stop = new AbortController().signal;
  const limits = { rate: 5, seed: 1, restartEvery: 2, honestOnly: true, hostileTokens: 6_000, stop };
  const how = { path, repo: 'drilled', data: join(dir, 'data'), ...limits };
  const result = await runSoak(model, { ...how, minutes: 0.15, onProgress: () => {} });
  expect(result).toMatchObject({ failed: {}, lostTokens: 0, doubledTokens: 0, broken: '' });
  const { completions, keystrokes, choices, uploads } = result.mix;
  for (const { ok } of [completions, keystrokes, choices, uploads]) expect(ok).toBeGreaterThan(0);
  expect(result.sent).toBe(completions.sent + keystrokes.sent + choices.sent + uploads.sent);
  expect(keystrokes.sent % 3).toBe(0);
  expect(result).toMatchObject({ endedEarly: false, attackers: [] });
  const { undisturbed, calm, attacked, struck } = result.waits;
  expect(undisturbed.count + calm.count + attacked.count + struck.count).toBeGreaterThan(0);
});
