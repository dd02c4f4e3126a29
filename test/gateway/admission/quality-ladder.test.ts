import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { QualityLadder } from '../../../services/gateway/admission/quality-ladder.ts';
import {
  COMPLETION_DEFAULTS,
  type CompletionRequest,
  RAG_MODES,
  type RagMode,
} from '../../../services/gateway/request.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import type { Retrieved } from '../../../services/lib/rag/search/retrieval.ts';
import { type Answer, type FakeGatewayOptions, fakeGateway, spelling } from '../../support/fake-gateway.ts';
import type { FakeModel } from '../../support/fake-workers.ts';

const ORDER = ['text', 'mixed', 'compressed'] as const;
const place = (mode: RagMode) => ORDER.indexOf(mode as 'text');

const asking = (mode: RagMode): CompletionRequest => ({
  ...COMPLETION_DEFAULTS,
  prompts: ['x'],
  rag: { repo: 'shop', mode, topK: 10, path: undefined, retriever: undefined, maxTextTokens: 512 },
});

/** What requests are given, one after the other, that find these waits, as shares of the target. */
function given(loads: readonly number[], asked: RagMode = 'text'): RagMode[] {
  let load = 0;
  const ladder = new QualityLadder({ targetTtftMs: 1000, waitMs: () => 1000 * load });
  return loads.map((next) => {
    load = next;
    return ladder.begin(asking(asked), 'a').rag!.mode;
  });
}

describe('the rule', () => {
  const load = fc.integer({ min: 0, max: 300 }).map((percent) => percent / 100);
  const history = fc.array(load, { maxLength: 8 });
  const modes = fc.constantFrom(...RAG_MODES);

  test('a request with a goal of its own steps down by that, at the latest by the target, and moves nobody else', () => {
    fc.assert(
      fc.property(history, fc.integer({ min: 1, max: 4000 }), (loads, ttftGoalMs) => {
        let load = 0;
        const ladders = [0, 1].map(() => new QualityLadder({ targetTtftMs: 1000, waitMs: () => 1000 * load }));
        for (const next of loads) {
          load = next;
          const [plain, hoping] = ladders.map((ladder, i) => {
            const request = { ...asking('text'), ...(i === 1 && { ttftGoalMs }) };
            return place(ladder.begin(request, 'a').rag!.mode);
          });
          expect(hoping).toBeGreaterThanOrEqual(plain!);
          if ((1000 * load) / ttftGoalMs >= 0.75) expect(hoping).toBe(place('compressed'));
          if (ttftGoalMs >= 1000) expect(hoping).toBe(plain);
          const others = ladders.map((ladder) => ladder.begin(asking('text'), 'a').rag!.mode);
          expect(others[1]).toBe(others[0]);
        }
      }),
    );
  });

  test('a request is given what it asked for or less, and what is no context as text stays as it is', () => {
    fc.assert(
      fc.property(fc.array(load, { minLength: 1 }), modes, (loads, asked) => {
        for (const [i, mode] of given(loads, asked).entries()) {
          if (asked === 'off' || asked === 'compressed') expect(mode).toBe(asked);
          else {
            expect(place(mode)).toBeGreaterThanOrEqual(place(asked));
            if (loads[i]! < 0.25) expect(mode).toBe(asked);
            if (loads[i]! >= 0.75) expect(mode).toBe('compressed');
          }
        }
      }),
    );
  });

  test('a longer wait never gives a higher quality, whatever came before', () => {
    fc.assert(
      fc.property(history, load, load, (before, a, b) => {
        const [short, long] = [Math.min(a, b), Math.max(a, b)].map((last) => place(given([...before, last]).at(-1)!));
        expect(long).toBeGreaterThanOrEqual(short!);
      }),
    );
  });

  test('the same wait twice changes nothing, and what went down goes up only when the wait falls by a quarter', () => {
    fc.assert(
      fc.property(history, load, fc.integer({ min: 0, max: 25 }), (before, last, fall) => {
        const [first, same] = given([...before, last, last]).slice(-2);
        expect(same).toBe(first);
        const less = (Math.round(100 * last) - fall) / 100;
        const [earlier, down, after] = given([...before, 0, last, less]).slice(-3);
        expect(earlier).toBe('text');
        if (less >= 0) expect(place(after!)).toBeGreaterThanOrEqual(place(down!));
      }),
    );
  });

  test.each([
    [[0.49], 'text'],
    [[0.5], 'mixed'],
    [[0.74], 'mixed'],
    [[0.75], 'compressed'],
    [[0.5, 0.25], 'mixed'],
    [[0.5, 0.24], 'text'],
    [[0.75, 0.5], 'compressed'],
    [[0.75, 0.49], 'mixed'],
    [[0.75, 0], 'text'],
  ] as const)('after waits of %j of the target a request for text is given %s', (loads, mode) => {
    expect(given(loads).at(-1)).toBe(mode);
  });
});

describe('a ladder', () => {
  test('each tenant has a level of its own, by its own wait', () => {
    const waits: Record<string, number> = { flood: 900, other: 10 };
    const ladder = new QualityLadder({ targetTtftMs: 1000, waitMs: (tenant) => waits[tenant]! });
    const given = (tenant: string) => ladder.begin(asking('text'), tenant).rag!.mode;
    expect([given('flood'), given('other')]).toEqual(['compressed', 'text']);
    waits['flood'] = 300; // between the shares of level 1: it goes up one step and stays there
    expect([given('flood'), given('flood')]).toEqual(['mixed', 'mixed']);
    waits['flood'] = 0;
    expect(given('flood')).toBe('text');
  });

  test('a request that is refused comes back one step below, as long as there is one, and remembers what it asked for', () => {
    const ladder = new QualityLadder({ targetTtftMs: 1000, waitMs: () => 0 });
    const saturated = new ServingError('saturated', 'full');
    const modes = (request: CompletionRequest | undefined): (RagMode | undefined)[] =>
      request === undefined ? [] : [request.rag!.mode, ...modes(ladder.below(request, saturated))];
    expect(modes(asking('text'))).toEqual(['text', 'mixed', 'compressed']);
    expect(modes(asking('compressed'))).toEqual(['compressed']);
    expect(modes(asking('off'))).toEqual(['off']);
    const lowest = ladder.below(ladder.below(asking('text'), saturated)!, saturated)!;
    expect(lowest.rag!.askedMode).toBe('text');
    expect(ladder.below({ ...asking('text'), rag: undefined }, saturated)).toBeUndefined();
    expect(ladder.below(asking('text'), new ServingError('no_worker', 'none'))).toBeUndefined();
  });
});

const found: Retrieved = {
  indexVersion: 'v1',
  retriever: 'jaccard',
  fingerprint: 'context',
  chunks: [0.5, 0.2, 0.1].map((score, i) => ({
    id: `${i}`,
    path: `m${i}.py`,
    startLine: 1,
    endLine: 10,
    score,
    text: `value_${i} = other_${i}\n`.repeat(12),
    vector: Float32Array.of(i, score),
  })),
};

const TOKENS_PER_SECOND = 1000;
const TARGET_MS = 2000;
/** Of waits for what happens at once on a machine that has nothing else to do. */
const PATIENCE = { timeout: 30_000 };

/** A gateway whose one worker keeps the prompts of the session `load` until {@link release}. */
async function loaded(options: FakeGatewayOptions = {}) {
  let keeps = false;
  const model: FakeModel = {
    token: spelling('ok'),
    capacity: 4096,
    prefillTokensPerSecond: TOKENS_PER_SECOND,
    trouble: ({ stage, call }) => (keeps && stage === 'before first' && held.has(call) ? 'hang' : undefined),
  };
  /** Calls that are kept. */
  const held = new Set<number>();
  const gateway = await fakeGateway(model, {
    retrieval: { retrieve: async () => found },
    maxInflight: 100,
    targetTtftMs: TARGET_MS,
    qualityLadder: true,
    ...options,
  });
  const { complete, workers } = gateway;
  const loads: Promise<Answer>[] = [];
  return {
    ...gateway,
    /** Gives a worker a prompt of so many tokens, and waits until it computes it. */
    async load(tokens: number) {
      keeps = true;
      const call = workers.prefills.length;
      held.add(call);
      loads.push(complete({ prompt: Array<number>(tokens).fill(70), max_tokens: 1, session: `load ${loads.length}` }));
      await vi.waitUntil(() => workers.prefills.length > call, PATIENCE);
    },
    /** Ends what was kept: newer requests of the same sessions take its place. */
    async release() {
      keeps = false;
      await Promise.all(loads.map((_, i) => complete({ prompt: 'x', max_tokens: 1, session: `load ${i}` })));
      await Promise.all(loads.splice(0));
    },
    ask: (mode: string, prompt = 'x') => complete({ prompt, suffix: '', max_tokens: 1, rag: { repo: 'shop', mode } }),
  };
}

const steps = async () =>
  Object.fromEntries(
    (await metrics.laddered.get()).values.map(({ labels, value }) => [`${labels['asked']} ${labels['given']}`, value]),
  );

describe('a gateway with --quality-ladder', () => {
  test('under load context steps down and says so, and it goes up again when the load is gone', async () => {
    const { ask, load, release } = await loaded();
    const before = await steps();
    const given = async () => {
      const answers = await Promise.all(['text', 'mixed', 'compressed', 'off'].map((mode) => ask(mode)));
      return answers.map(({ status, rag }) => {
        const { ladder } = rag as { ladder?: { asked: string; given: string } };
        if (ladder) expect(ladder.given).toBe(rag!.mode);
        return [status, rag!.mode, ladder?.asked].filter((word) => word !== undefined).join(' ');
      });
    };
    expect(await given()).toEqual(['200 text', '200 mixed', '200 compressed', '200 off']);
    await load(TARGET_MS * 0.6);
    expect(await given()).toEqual(['200 mixed text', '200 mixed', '200 compressed', '200 off']);
    await release();
    expect(await given()).toEqual(['200 text', '200 mixed', '200 compressed', '200 off']);
    await load(TARGET_MS * 0.8);
    expect(await given()).toEqual(['200 compressed text', '200 compressed mixed', '200 compressed', '200 off']);
    await release();
    const after = await steps();
    const grown = (step: string) => (after[step] ?? 0) - (before[step] ?? 0);
    expect(['text mixed', 'text compressed', 'mixed compressed'].map(grown)).toEqual([1, 1, 1]);
  });

  test('the header of an answer says what was asked for', async () => {
    const { ask, load, release } = await loaded();
    await load(TARGET_MS * 0.6);
    expect((await ask('text')).headers['x-llavacode-rag']).toBe('mixed; chunks=3; asked=text');
    await release();
  });

  test("llm-d's header of an objective is a goal; one that is no time, or no sooner than the target, changes nothing", async () => {
    const { app, load, release } = await loaded();
    await load(TARGET_MS * 0.3);
    const given = async (objective: string) => {
      const payload = { prompt: 'x', suffix: '', max_tokens: 1, rag: { repo: 'shop', mode: 'text' } };
      const headers = { 'x-llm-d-slo-ttft-ms': objective };
      const { headers: answered } = await app.inject({ method: 'POST', url: '/v1/completions', headers, payload });
      return String(answered['x-llavacode-rag']).split(';')[0];
    };
    expect(await given(String(TARGET_MS / 100))).toBe('compressed');
    for (const objective of [String(TARGET_MS), 'soon', '-1', '0', '']) expect(await given(objective)).toBe('text');
    await release();
  });

  test('a queue that is full lets in more requests, and refuses none that fits in fewer tokens', async () => {
    const fill = async (qualityLadder: boolean) => {
      const gateway = await loaded({ qualityLadder });
      // The worker has all prompts that it takes: what comes now waits in the gateway's queue.
      await gateway.load(20);
      await gateway.load(20);
      let refused = 0;
      const asked = Array.from({ length: 24 }, (_, i) =>
        gateway.ask('text', `x${i}`).then((answer) => {
          if (answer.status === 429) refused++;
          return answer;
        }),
      );
      const waiting = async () => (await metrics.waiting.get()).values[0]!.value;
      await vi.waitUntil(async () => (await waiting()) + refused === asked.length, PATIENCE);
      await gateway.release();
      const answers = await Promise.all(asked);
      const count = (is: (answer: Answer) => boolean) => answers.filter(is).length;
      return {
        refused,
        modes: ORDER.map((mode) => count(({ status, rag }) => status === 200 && rag?.mode === mode)),
      };
    };
    const without = await fill(false);
    expect(without.refused).toBeGreaterThan(0);
    expect(without.modes.slice(1)).toEqual([0, 0]);
    const laddered = await fill(true);
    expect(laddered.refused).toBe(0);
    expect(laddered.modes.every((count) => count > 0)).toBe(true);
  });

  test('without a projector there is nothing to step down to', async () => {
    const { ask, load, release } = await loaded({ contextFingerprint: undefined });
    await load(TARGET_MS * 0.6);
    const { rag } = await ask('text');
    expect(rag).toMatchObject({ mode: 'text' });
    expect(rag).not.toHaveProperty('ladder');
    await release();
  });
});
