// The page's worker: everything that computes. A message {id, kind, ...} is answered by {id, result} or
// {id, error}. The page asks for one sampling step at a time, so that nothing waits longer than one.
/* global createEngine */
const loading = createEngine();
let sampling = null;

const answers = {
  describe: (engine) => engine.describe_model(),
  forward: (engine, {x_0, height, width, channels, controls}) =>
      engine.forward(x_0, height, width, channels, controls),
  start(engine, {controls}) {
    sampling?.delete();
    sampling = engine.start(controls);
  },
  step(engine) {
    const begin = performance.now();
    const frame = engine.step(sampling);
    frame.milliseconds = performance.now() - begin;
    return frame;
  },
};

self.onmessage = async ({data}) => {
  try {
    self.postMessage({id: data.id, result: answers[data.kind](await loading, data)});
  } catch (error) {
    self.postMessage({id: data.id, error: String(error.message ?? error)});
  }
};
