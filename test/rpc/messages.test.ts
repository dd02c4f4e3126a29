/** Types of request/ as messages, encoded to bytes and back. */
import { describe, expect, test } from 'vitest';
import { GREEDY, type Sampling } from '../../services/lib/request/next-token.ts';
import { protocol } from '../../services/lib/rpc/contract.ts';
import type { PrefillRequest, PrefillRequest__Output } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import {
  readFinishReason,
  readSampling,
  readSoftTokens,
  readToken,
  samplingMessage,
  softTokensMessage,
  tokenMessage,
} from '../../services/lib/rpc/messages.ts';

/** The message that a server gets when a client sends this request. */
function overTheWire(request: PrefillRequest): PrefillRequest__Output {
  const { requestSerialize, requestDeserialize } = protocol.Prefill.service.Prefill;
  return requestDeserialize(requestSerialize(request));
}
const arrived = (sampling: Sampling) => {
  const [choice] = overTheWire({ choices: [samplingMessage(sampling)] }).choices;
  return choice && readSampling(choice);
};

describe('sampling', () => {
  test('default sampling arrives unchanged', () => {
    expect(arrived(GREEDY)).toEqual(GREEDY);
  });

  test('every field of a sampling arrives', () => {
    const sampling: Sampling = {
      temperature: 0.75,
      topP: 0.5,
      topK: 40,
      minP: 0.125,
      seed: 2 ** 53 - 1,
      logprobs: 5,
      frequencyPenalty: -1.5,
      presencePenalty: 2,
      logitBias: new Map([
        [0, -100],
        [151_643, 100],
      ]),
      stopTokenIds: [151_643, 0],
      minTokens: 3,
      priorOutputIds: [17, 0, 4],
    };
    expect(arrived(sampling)).toEqual(sampling);
  });
});

describe('soft tokens', () => {
  test('soft tokens arrive unchanged from any place in memory', () => {
    const memory = Float32Array.of(9, 1.5, -0, 2 ** -149, 3.4e38, 9);
    const soft = { positions: Int32Array.of(0, 7), vectors: memory.subarray(1, 5) };
    const read = readSoftTokens(overTheWire({ requestId: 'x', soft: softTokensMessage(soft) }).soft);
    expect(read.positions).toEqual(soft.positions);
    expect(read.vectors).toEqual(Float32Array.of(1.5, -0, 2 ** -149, 3.4e38));
  });

  test('the bytes of a prompt with one soft token per chunk are those that earlier releases read and write', () => {
    const soft = { positions: Int32Array.of(0, 7), vectors: Float32Array.of(1.5, -2) }; // two chunks, one element each
    const bytes = protocol.Prefill.service.Prefill.requestSerialize({ requestId: 'x', soft: softTokensMessage(soft) });
    const [name, positions, vectors] = ['0a0178', '0a020007', '12080000c03f000000c0'];
    expect(bytes.toString('hex')).toBe(`${name}220e${positions}${vectors}`);
  });

  test('missing soft tokens are read as none', () => {
    expect(readSoftTokens(overTheWire({}).soft)).toEqual({
      positions: new Int32Array(0),
      vectors: new Float32Array(0),
    });
  });

  test('soft tokens with an incomplete float are refused', () => {
    const { soft } = overTheWire({ soft: { positions: [0], vectors: Buffer.alloc(7) } });
    expect(() => readSoftTokens(soft)).toThrowError(
      expect.objectContaining({ code: 'invalid_request', message: expect.stringContaining('7 bytes') }),
    );
  });
});

test('a token has logprobs only if they were asked for', () => {
  const token = { id: 3, logprob: -0.5, top: [{ id: 4, logprob: -0.25 }] };
  expect(readToken(tokenMessage(token), true)).toEqual(token);
  expect(readToken(tokenMessage({ id: 3 }), false)).toEqual({ id: 3 });
});

test('a finish reason is read, and an empty one means that the sequence goes on', () => {
  expect(['', 'stop', 'length'].map(readFinishReason)).toEqual([undefined, 'stop', 'length']);
});
