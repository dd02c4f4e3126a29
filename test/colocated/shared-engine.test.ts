/** Prompts and decode steps at one engine. */
import { describe, expect, test } from 'vitest';
import { SharedEngine } from '../../services/colocated/shared-engine.ts';
import { NO_TOKEN } from '../../services/lib/engine/session.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { FakeEngine, gate, settle } from '../support/fake-engine.ts';

function start() {
  const fake = new FakeEngine(2, 64);
  const engine = new SharedEngine(fake);
  const runs: string[] = [];
  fake.beforeChunk = async () => {
    runs.push('chunk');
    await settle();
  };
  fake.beforeStep = async () => {
    runs.push('step');
    await settle();
  };
  const chunk = (past = 0, signal?: AbortSignal) =>
    engine.chunk({ slot: 0, past, ids: Int32Array.of(1), soft: NO_SOFT_TOKENS, logitRows: [] }, signal);
  const step = (length = 0) => engine.step(Int32Array.of(NO_TOKEN, 2), Int32Array.of(32, length));
  return { fake, engine, runs, chunk, step };
}

test('two loops that ask again as soon as they are served take turns', async () => {
  const { runs, chunk, step } = start();
  const prompts = (async () => {
    for (let i = 0; i < 10; i++) await chunk(i);
  })();
  const steps = (async () => {
    for (let i = 0; i < 10; i++) await step(i);
  })();
  await Promise.all([prompts, steps]);
  expect(runs).toEqual(Array.from({ length: 10 }, () => ['chunk', 'step']).flat());
});

test('two loops take turns even if one does other work between its runs, such as sampling', async () => {
  const { runs, chunk, step } = start();
  const loop = async (run: (i: number) => Promise<unknown>, turns: number) => {
    for (let i = 0; i < 10; i++) {
      await run(i);
      for (let turn = 0; turn < turns; turn++) await undefined;
    }
  };
  await Promise.all([loop(chunk, 7), loop(step, 12)]);
  expect(runs).toEqual(Array.from({ length: 10 }, () => ['chunk', 'step']).flat());
});

test('a loop that is alone never waits', async () => {
  const { runs, chunk, step } = start();
  for (let i = 0; i < 3; i++) await step(i);
  for (let i = 0; i < 3; i++) await chunk(i);
  expect(runs).toEqual(['step', 'step', 'step', 'chunk', 'chunk', 'chunk']);
});

test('runs and other work are done one at a time in order of arrival', async () => {
  const { fake, engine, runs, chunk, step } = start();
  const held = gate();
  fake.beforeChunk = () => held.opened;
  const note = (name: string) => () => void runs.push(name);
  const all = [chunk(), engine.inTurn(note('copy')), step(), engine.inTurn(note('copy'))];
  await settle();
  expect(runs).toEqual([]); // the chunk is under way
  held.open();
  await Promise.all(all); // the fake engine throws at two runs at once
  expect(runs).toEqual(['copy', 'step', 'copy']);
});

describe('a turn that fails', () => {
  test('a turn that fails fails only for its caller', async () => {
    const { fake, engine, runs, chunk, step } = start();
    fake.beforeChunk = () => {
      throw new Error('the graph broke');
    };
    const broken = chunk();
    const work = engine.inTurn(() => {
      throw new Error('no copy');
    });
    const good = step();
    await expect(broken).rejects.toThrowError('the graph broke');
    await expect(work).rejects.toThrowError('no copy');
    await good;
    expect(runs).toEqual(['step']);
  });

  test('a turn that is aborted while it waits still ends in its turn, so that nothing else runs on its slot before', async () => {
    const { fake, chunk, step } = start();
    const held = gate();
    fake.beforeStep = () => held.opened;
    const stepping = step();
    const caller = new AbortController();
    const waiting = chunk(0, caller.signal);
    let over = false;
    const outcome = expect(waiting.finally(() => (over = true))).rejects.toThrowError('hung up');
    caller.abort(new Error('hung up'));
    await settle();
    expect(over).toBe(false);
    held.open();
    await stepping;
    await outcome;
  });
});
