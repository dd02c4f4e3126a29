/** Choices that end with their line, statement or block, as a client of the gateway has them. */
import { expect, test, vi } from 'vitest';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';
import type { FakeModel, Trouble } from '../../support/fake-workers.ts';

const BEFORE = 'class Stack:\n    def pop(self):\n        ';
const STATEMENT = 'if self.items:\n            return self.items.pop()';
const REST = '\n        return None\n\n    def push(self, item):\n        self.items.append(item)\n';
const token = spelling(STATEMENT + REST);
const body = { prompt: BEFORE, stop_at: 'statement', max_tokens: 120, temperature: 0, language: 'python' };

/** Tokens of the output with which its text first contains `end`. */
function tokensUntil(end: string): number {
  const ids = tokenizer.encode(STATEMENT + REST);
  return ids.findIndex((_, i) => tokenizer.decode(ids.slice(0, i + 1)).includes(end)) + 1;
}

test('a choice ends with its statement, whole and streamed, and the tokens that were needed are counted', async () => {
  const gateway = await fakeGateway({ token });
  // The word after the statement shows that no `else` comes.
  const needed = tokensUntil('return None');
  const { choices, usage } = await gateway.complete(body);
  expect(choices[0]).toMatchObject({ text: STATEMENT, finish_reason: 'stop' });
  expect(usage!.completion_tokens).toBeLessThanOrEqual(needed);
  expect(usage!.completion_tokens).toBeGreaterThanOrEqual(tokensUntil('pop()\n'));
  const events = await gateway.stream({ ...body, stream_options: { include_usage: true } });
  expect(events.map((event) => event.choices[0]?.text ?? '').join('')).toBe(STATEMENT);
  expect(events.at(-2)!.choices[0]!.finish_reason).toBe('stop');
  expect(events.at(-1)!.usage).toEqual(usage);
});

test('no step of a decode worker is waited for beyond the end of the code, and its slot is free then', async () => {
  const { usage } = await (await fakeGateway({ token })).complete(body);
  const hang = ({ stage, position }: Trouble) =>
    stage === 'in decode' && position === usage!.completion_tokens ? 'hang' : undefined;
  const gateway = await fakeGateway({ token, trouble: hang });
  expect((await gateway.complete(body)).choices[0]!.text).toBe(STATEMENT);
  await gateway.workers.idle();
});

test('each choice ends by itself, with logprobs of the tokens that it took', async () => {
  const texts = ['x = 1\ny', 'foo(\n    1)\ny', 'return\ny'].map((text) => tokenizer.encode(text));
  const gateway = await fakeGateway({ token: (i, choice) => texts[choice]![i] ?? idOf('<|endoftext|>') });
  const asked = { ...body, prompt: 'a\n', n: 3, logprobs: 1, return_token_ids: true };
  const { choices, usage } = await gateway.complete(asked);
  expect(choices.map(({ text }) => text)).toEqual(['x = 1', 'foo(\n    1)', 'return']);
  for (const { logprobs, token_ids } of choices) expect(logprobs!.tokens).toHaveLength(token_ids!.length);
  expect(usage!.completion_tokens).toBe(choices.reduce((sum, { token_ids }) => sum + token_ids!.length, 0));
});

test('a stop string ends a choice before its statement does', async () => {
  const { complete } = await fakeGateway({ token });
  const { choices } = await complete({ ...body, stop: ['.items.pop'] });
  expect(choices[0]).toMatchObject({ text: STATEMENT.replace('.items.pop()', ''), finish_reason: 'stop' });
});

test('a choice whose worker is lost ends at the same place', async () => {
  const whole = await (await fakeGateway({ token })).complete(body);
  for (const position of [1, 4, 9]) {
    let lost = false;
    const trouble = (at: Trouble): undefined => {
      if (lost || at.stage !== 'in decode' || at.position !== position) return;
      lost = true;
      throw new ServingError('worker_lost', 'connection dropped');
    };
    const more = { morePrefill: ['p2'], moreDecode: ['d2'], maxReplays: 1 };
    const gateway = await fakeGateway({ token, trouble }, more);
    expect(await gateway.complete(body)).toMatchObject({ choices: whole.choices, usage: whole.usage });
    expect(lost).toBe(true);
  }
});

test('an end of text within the statement is an end, and min_tokens count', async () => {
  const { complete } = await fakeGateway({ token: spelling('x = (1,') });
  expect((await complete(body)).choices[0]).toMatchObject({ text: 'x = (1,', finish_reason: 'stop' });
  const longer = await fakeGateway({ token: spelling('x\ny\nz\n') });
  const { choices, usage } = await longer.complete({ ...body, min_tokens: 3 });
  expect(choices[0]!.text).toBe('x\ny');
  expect(usage!.completion_tokens).toBeGreaterThan(3);
});

test('the language is told by the body, by the path of the file, or by the code before the cursor', async () => {
  // Only a grammar knows that the semicolon ends the statement: nothing after the line end is waited for.
  const { complete } = await fakeGateway({ token: spelling('= f();\n\n\n\n') });
  const code = "import { f } from 'f';\nconst y = 1;\nconst x ";
  const tokens = async (asked: object) =>
    (await complete({ ...body, language: null, ...asked })).usage!.completion_tokens;
  const few = await tokens({ prompt: 'const x ', language: 'TypeScript' });
  expect(await tokens({ prompt: 'const x ', rag: { mode: 'off', path: 'a/b.ts' } })).toBe(few);
  expect(await tokens({ prompt: code })).toBe(few);
  expect(await tokens({ prompt: 'const x ', language: 'COBOL' })).toBeGreaterThan(few);
  expect(await tokens({ prompt: 'const x ', language: 'COBOL', rag: { mode: 'off', path: 'b.ts' } })).toBeGreaterThan(
    few,
  );
});

test('n_indent ends a choice before a line that is indented less', async () => {
  const { complete } = await fakeGateway({ token });
  const { choices } = await complete({ ...body, stop_at: null, n_indent: 8 });
  expect(choices[0]).toMatchObject({ text: `${STATEMENT}\n        return None`, finish_reason: 'stop' });
});

test('t_max_predict_ms ends a choice with length, once a line end is out', async () => {
  const clock = vi.spyOn(performance, 'now').mockReturnValue(1_000);
  try {
    let now = 1_000;
    const slow: FakeModel['token'] = (position) => {
      now += 10;
      clock.mockReturnValue(now);
      return spelling('aa bb cc dd ee ff\ngg hh ii jj')(position, 0, 0);
    };
    const gateway = await fakeGateway({ token: slow });
    const { choices } = await gateway.complete({ prompt: 'x', max_tokens: 60, t_max_predict_ms: 20 });
    expect(choices[0]!.finish_reason).toBe('length');
    expect(choices[0]!.text).toMatch(/^aa bb cc dd ee ff\n(?:g|$)/);
    const unhurried = await gateway.complete({ prompt: 'x', max_tokens: 60, t_max_predict_ms: 0 });
    expect(unhurried.choices[0]).toMatchObject({ finish_reason: 'stop' });
  } finally {
    clock.mockRestore();
  }
});
