/**
 * What a client can do to a system without breaking a rule: each attack goes on until it is told to stop. Attacks are
 * the same in the bench of fairness, in the drills and in the soak.
 */
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Door } from '../system/tenants.ts';
import type { Attack, AttackScene } from './attack.ts';
import type { Meter } from './meter.ts';
import { keepPipelining } from './pipelining.ts';
import { dial, headOf, promptOf, rawCompletion } from './raw-client.ts';

/** A client that was refused asks again after this time: none is told to be polite, but it is not a busy loop. */
const RETRY_MS = 500;
const TIMEOUT_MS = 120_000;
const BODY_LIMIT_BYTES = 4 << 20;

/** Does something again and again, `count` times at once, until the attack is over. */
async function keepDoing({ until, meter }: AttackScene, count: number, act: () => Promise<unknown>): Promise<void> {
  setMaxListeners(0, until); // each request listens
  const one = async () => {
    while (!until.aborted) {
      try {
        await act();
      } catch (error) {
        if (until.aborted) return;
        meter.refused(ServingError.from(error, 'worker_lost').code);
        await pause(until, RETRY_MS);
      }
    }
  };
  await Promise.all(Array.from({ length: count }, one));
}

const pause = (until: AbortSignal, ms: number) => sleep(ms, undefined, { signal: until }).catch(() => {});

/** Sends a request for `n` choices, and reads its stream. @throws ServingError as of {@link streamCompletion}. */
export async function complete(
  { door, meter, until }: Pick<AttackScene, 'door' | 'meter' | 'until'>,
  { n = 1, ...body }: Omit<CompletionBody, 'prompt'> & { readonly n?: number; readonly prompt: readonly number[] },
): Promise<void> {
  const metered = meter.sent(n, body.prompt.length);
  const request = { ...body, n, ignore_eos: true, return_token_ids: true };
  try {
    await streamCompletion(door.url, request, AbortSignal.any([until, AbortSignal.timeout(TIMEOUT_MS)]), {
      apiKey: door.apiKey,
      onChunk: (_, tokenIds, choice) => metered.received(choice, tokenIds.length),
    });
  } finally {
    metered.ended();
  }
}

/** @param outputTokens of each choice. */
export const manyChoices = (n: number, outputTokens: number): Attack => ({
  name: `requests for ${n} choices`,
  backlogged: true,
  run: (scene) =>
    keepDoing(scene, 2, () =>
      complete(scene, { prompt: promptOf(scene.random, 64), n, max_tokens: outputTokens, temperature: 1 }),
    ),
});

export const FLOOD: Attack = {
  name: 'a flood of short requests',
  backlogged: true,
  run: (scene) =>
    keepDoing(scene, 48, () => complete(scene, { prompt: promptOf(scene.random, 16), max_tokens: 8, temperature: 1 })),
};

export const LONGEST_PROMPTS: Attack = {
  name: 'prompts as long as a slot',
  backlogged: true,
  run: (scene) =>
    keepDoing(scene, 12, () =>
      complete(scene, { prompt: promptOf(scene.random, scene.capacity - 16), max_tokens: 8, temperature: 1 }),
    ),
};

/** Time for which a client leaves its answer unread. */
const UNREAD_MS = 10_000;

/** @param connections of eight choices each, whose answers are larger than sockets hold. */
export const unread = (connections: number): Attack => ({
  name: 'streams that are not read',
  backlogged: false,
  run: (scene) =>
    keepDoing(scene, connections, async () => {
      const { door, random, capacity, until } = scene;
      const socket = await dial(door);
      socket?.pause();
      const max_tokens = capacity - 32;
      const events = { stream: true, logprobs: 5, return_token_ids: true, ignore_eos: true, temperature: 1 };
      const stream_options = { include_usage: true, continuous_usage_stats: true };
      const body = { prompt: promptOf(random, 16), n: 8, max_tokens, ...events, stream_options };
      // The longest id makes the longest events.
      socket?.write(rawCompletion(door, body, { 'x-request-id': 'x'.repeat(128) }));
      await pause(until, UNREAD_MS);
      socket?.destroy();
    }),
});

export const LEAVING: Attack = {
  name: 'clients that hang up at once',
  backlogged: false,
  run: (scene) =>
    keepDoing(scene, 2, async () => {
      const { door, random, until } = scene;
      const socket = await dial(door);
      const body = { prompt: promptOf(random, 64), max_tokens: 256, ignore_eos: true, stream: true };
      await new Promise<void>((written) => {
        if (socket) socket.write(rawCompletion(door, body), () => written());
        else written();
      });
      socket?.destroy();
      await pause(until, 50);
    }),
};

export const PIPELINING: Attack = {
  name: 'pipelined requests',
  backlogged: true,
  run: (scene) => keepDoing(scene, 12, () => keepPipelining(scene)),
};

/** Requests of a pipeline that is left. */
const LEFT_DEPTH = 8;

export const LEAVING_PIPELINES: Attack = {
  name: 'pipelines whose clients leave',
  backlogged: false,
  run: (scene) =>
    keepDoing(scene, 1, async () => {
      const { door, random, until } = scene;
      const socket = await dial(door);
      const body = () => ({ prompt: promptOf(random, 16), max_tokens: 256, ignore_eos: true, stream: true });
      socket?.resume();
      socket?.write(Array.from({ length: LEFT_DEPTH }, () => rawCompletion(door, body())).join(''));
      await pause(until, 1_000);
      socket?.destroy();
    }),
};

/** The largest answers that the gateway gives: it is asked for less and less until it does not refuse. */
export const LARGEST_ANSWERS: Attack = {
  name: 'echoes with logprobs',
  backlogged: false,
  run: async (scene) => {
    let n = 128;
    await keepDoing(scene, 1, async () => {
      const { door, random, meter, capacity, until } = scene;
      const prompt = promptOf(random, capacity - 2);
      const body = JSON.stringify({ prompt, n, echo: true, logprobs: 5, max_tokens: 0 });
      const status = await post(door, body, until);
      if (status === 200) answered(meter, prompt.length);
      else if (status === 400 && n > 1) n >>= 1;
      else throw new ServingError('saturated', `HTTP ${status}`);
      await pause(until, RETRY_MS);
    });
  },
};

/** Counts a prompt that was answered without output. */
function answered(meter: Meter, promptTokens: number): void {
  const metered = meter.sent(1, promptTokens);
  metered.received(0, 0);
  metered.ended();
}

/** Bodies of twice the limit, which are refused. */
export const BIG_BODIES: Attack = {
  name: 'bodies that are too large',
  backlogged: false,
  run: (scene) => {
    const body = JSON.stringify({ prompt: 'a'.repeat(2 * BODY_LIMIT_BYTES), max_tokens: 1 });
    return keepDoing(scene, 1, async () => {
      await post(scene.door, body, scene.until).catch(() => {}); // whether it hears of its refusal is for a drill
      await pause(scene.until, RETRY_MS);
    });
  },
};

/** Sends a body and throws the answer away. @returns the status. */
async function post({ url, apiKey }: Door, body: string, until: AbortSignal): Promise<number> {
  const headers = { 'content-type': 'application/json', ...bearer(apiKey) };
  const signal = AbortSignal.any([until, AbortSignal.timeout(TIMEOUT_MS)]);
  const response = await sendRequest({ method: 'POST', url: `${url}/v1/completions`, headers, body, signal });
  for await (const _ of response); // read to the end
  return response.statusCode ?? 0;
}

/** Bodies of which one byte comes every second. */
export const SLOW_BODIES: Attack = {
  name: 'bodies that drip',
  backlogged: false,
  run: (scene) =>
    keepDoing(scene, 8, async () => {
      const socket = await dial(scene.door);
      socket?.write(headOf(scene.door, '/v1/completions', 100_000));
      socket?.resume();
      while (socket?.writable && !scene.until.aborted) {
        socket.write(' ');
        await pause(scene.until, 1_000);
      }
      socket?.destroy();
      await pause(scene.until, RETRY_MS);
    }),
};
