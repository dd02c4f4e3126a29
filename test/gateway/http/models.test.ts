import { expect, test } from 'vitest';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';

const token = spelling('ab');

test('/v1/models names the served model and the tokens that a request may have', async () => {
  const { app } = await fakeGateway({ token, capacity: 100 });
  const model = {
    id: 'tiny',
    object: 'model',
    created: expect.any(Number),
    owned_by: 'llavacode',
    max_model_len: 100,
  };
  expect((await app.inject('/v1/models')).json()).toEqual({ object: 'list', data: [model] });
  expect((await app.inject('/v1/models/tiny')).json()).toEqual(model);
  const missing = await app.inject('/v1/models/gpt');
  expect([missing.statusCode, missing.json().error]).toMatchObject([404, { code: 'model_not_found', param: 'model' }]);
});
