import { expect, test } from 'vitest';
import { metrics } from '../../../services/lib/process/metrics.ts';
import { TABBY } from '../../support/editor-requests.ts';
import { fakeGateway, idOf, spelling, tokenizer } from '../../support/fake-gateway.ts';

const TEXT = 'item.price for item in cart)';

async function gateway() {
  const made = await fakeGateway({ token: spelling(TEXT), capacity: 4_096 });
  const post = (payload: object, url = '/v1/completions') => made.app.inject({ method: 'POST', url, payload });
  return { ...made, post };
}

test('a request of Tabby is answered in its shape, from the code around the cursor', async () => {
  const { post, workers } = await gateway();
  const answer = await post(TABBY);
  const id = `cmpl-${answer.headers['x-request-id']}`;
  expect(answer.json()).toEqual({ id, choices: [{ index: 0, text: TEXT }] });
  const { prefix, suffix } = TABBY.segments;
  const ids = [...workers.prefills[0]!.tokenIds!];
  const context = tokenizer.decode(ids.splice(0, ids.indexOf(idOf('<|fim_prefix|>'))));
  const { relevant_snippets_from_changed_files: changed } = TABBY.segments;
  for (const { body } of changed) expect(context).toContain(body.trim());
  expect(ids).toEqual([
    idOf('<|fim_prefix|>'),
    ...tokenizer.encode(prefix),
    idOf('<|fim_suffix|>'),
    ...tokenizer.encode(suffix),
    idOf('<|fim_middle|>'),
  ]);
  await workers.idle();
});

test('options for debugging show the prompt and the snippets, and complete a prompt as it is', async () => {
  const { post, workers } = await gateway();
  const debug_options = { return_prompt: true, return_snippets: true };
  const { debug_data } = (await post({ ...TABBY, debug_options })).json();
  expect(debug_data.prompt).toBe(tokenizer.decode(workers.prefills[0]!.tokenIds!));
  expect(debug_data.snippets.map(({ filepath }: { filepath: string }) => filepath)).toEqual([
    'shop/cart.py',
    'shop/rates.py',
    'shop/tax.py',
  ]);
  const disabled = { ...debug_options, disable_retrieval_augmented_code_completion: true };
  expect((await post({ ...TABBY, debug_options: disabled })).json().debug_data.snippets).toEqual([]);
  await post({ language: 'python', debug_options: { raw_prompt: 'x = ' } });
  expect(workers.prefills.at(-1)!.tokenIds).toEqual(tokenizer.encode('x = '));
});

test('a body of Tabby may name a repository and files as every other body', async () => {
  const { post } = await gateway();
  const asked = await post({ ...TABBY, rag: { repo: 'shop', mode: 'text' } });
  expect(asked.headers['x-llavacode-rag']).toMatch(/^text; chunks=\d; degraded=no_store$/); // there is none here
  const { segments } = TABBY;
  const own = { ...TABBY, segments: { prefix: segments.prefix, filepath: './shop\\total.py' }, session: 's' };
  const files = [
    { path: 'shop/total.py', text: 'rate = "of the file at the cursor"\n' },
    { path: 'shop/rates.py', text: 'RATES = {"de": 0.19}\n' },
  ];
  const debug_options = { return_prompt: true };
  const prompt = (body: object) => post(body).then((answer) => answer.json().debug_data.prompt);
  const shown = await prompt({ ...own, rag: { files }, debug_options });
  expect(shown).toContain('RATES = {"de": 0.19}');
  expect(shown).not.toContain('of the file at the cursor');
  const disabled = { ...debug_options, disable_retrieval_augmented_code_completion: true };
  expect(await prompt({ ...own, rag: { files }, debug_options: disabled })).not.toContain('RATES');
});

test.each([
  [{ segments: {} }, 'segments.prefix'],
  [{ segments: null, debug_options: {} }, 'segments'],
  [{ ...TABBY, mode: 'next_edit_suggestion' }, 'mode'],
])('a body of Tabby that cannot be answered is refused: %j', async (body, param) => {
  const { post } = await gateway();
  const answer = await post(body);
  expect([answer.statusCode, answer.json().error.param]).toEqual([400, param]);
});

/** Events that were counted, by kind and mode. */
const counted = async () =>
  Object.fromEntries(
    (await metrics.completionEvents.get()).values.map(({ labels, value }) => [`${labels.event} ${labels.mode}`, value]),
  );

test('events of a completion are counted by the mode of its context, each of them once', async () => {
  const { post, app } = await gateway();
  const before = await counted();
  const more = async (name: string) => ((await counted())[name] ?? 0) - (before[name] ?? 0);
  const event = async (type: string, completion_id: string, choice_index = 0) =>
    (await post({ type, completion_id, choice_index, view_id: 'v', elapsed: 5 }, '/v1/events')).statusCode;
  const { id } = (await post(TABBY)).json();
  expect(await event('view', id)).toBe(200);
  expect(await event('view', id)).toBe(200);
  expect(await event('select', id)).toBe(200);
  expect(await event('view', id, 500)).toBe(200);
  const off = (await post({ prompt: 'x', max_tokens: 1, rag: { mode: 'off' } })).json();
  expect(await event('dismiss', off.id)).toBe(200);
  expect(await event('dismiss', 'cmpl-other')).toBe(200);
  expect([await more('view compressed'), await more('select compressed'), await more('dismiss off')]).toEqual([
    1, 1, 1,
  ]);
  expect(await more('dismiss unknown')).toBe(1);
  expect(await event('accept', id)).toBe(400);
  expect((await app.inject('/metrics')).payload).not.toContain(id);
});

test('the health of Tabby names the model and the machine, once completions are served', async () => {
  const { app, readiness, workers } = await gateway();
  expect((await app.inject('/v1/health')).statusCode).toBe(503);
  await readiness.check();
  for (const method of ['GET', 'POST'] as const) {
    const health = (await app.inject({ method, url: '/v1/health' })).json();
    expect(health).toMatchObject({ model: 'tiny', device: 'cpu', cuda_devices: [], cpu_count: expect.any(Number) });
    expect(health.version.git_describe).toMatch(/^v\d/);
  }
  await workers.idle();
});
