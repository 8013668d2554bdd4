"""A scikit-learn estimator that funcopt's LBFGS fits: multinomial logistic regression, in one update.

Cross-validation, clones and pipelines take it as any other; its optimum is that of scikit-learn's LogisticRegression.

python examples/integrations/lbfgs_fit.py
"""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits import digits
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import funcopt


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Minimizes scikit-learn's objective: the sum of the losses, and half the squares of the weights over `C`.

    Args:
        C: how strongly the data count beside the penalty, > 0.
        max_iter: iterations at most.
        tol: largest entry of the gradient of the mean at which the fit ends.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 500, tol: float = 1e-7) -> None:
        self.C = C
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        self.classes_, labels = np.unique(y, return_inverse=True)
        x = jnp.asarray(X, float)

        def loss_of(params: dict[str, jax.Array]) -> jax.Array:
            logits = x @ params["w"] + params["b"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean() + 0.5 * jnp.sum(params["w"] ** 2) / (self.C * len(x))

        tx = funcopt.lbfgs(
            max_iter=self.max_iter, tolerance_grad=self.tol, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        @jax.jit
        def optimum(params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
            value, grads = jax.value_and_grad(loss_of)(params)
            updates, state = tx.update(grads, tx.init(params), params, value=value, value_fn=loss_of)
            return funcopt.apply_updates(params, updates), state.n_iter

        zeros = {"w": jnp.zeros((x.shape[1], len(self.classes_))), "b": jnp.zeros(len(self.classes_))}
        params, iterations = optimum(zeros)
        self.n_iter_ = int(iterations)
        self.coef_, self.intercept_ = np.asarray(params["w"]).T, np.asarray(params["b"])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.classes_[(X @ self.coef_.T + self.intercept_).argmax(1)]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    data = digits()
    train_x = data.train_x.astype(float)
    model = SoftmaxRegression().fit(train_x, data.train_y)
    theirs = LogisticRegression(tol=1e-8, max_iter=2000).fit(train_x, data.train_y)
    scores = cross_val_score(SoftmaxRegression(C=0.1), train_x, data.train_y, cv=3)
    accuracy = (model.predict(data.test_x) == data.test_y).mean()
    distance = np.abs(model.coef_ - theirs.coef_).max()
    print(f"lbfgs: {model.n_iter_} iterations, test accuracy {accuracy:.4f}, in cross-validation {scores.mean():.4f}")
    print(f"largest weight {np.abs(theirs.coef_).max():.2f}, apart from scikit-learn's {distance:.0e}")


if __name__ == "__main__":
    main()
