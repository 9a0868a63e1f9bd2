"""Diagnoses and their evidence."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from midwatch.errors import NotFound
from midwatch.json_shapes import diagnosis_document
from midwatch.server.api import models
from midwatch.server.api.answers import IfNoneMatch, Reader, answer, problems
from midwatch.server.api.paging import whole
from midwatch.server.context import ServerContext
from midwatch.store.schema import LARGEST_ID

DiagnosisId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Its number.")]


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/diagnoses", tags=["diagnoses"])

    @routes.get(
        "/{diagnosis_id}", response_model=models.Diagnosis, responses=problems(404)
    )
    async def read_diagnosis(
        who: Reader, diagnosis_id: DiagnosisId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return a diagnosis with its answer and its evidence."""
        found = await context.store.diagnosis(diagnosis_id)
        return answer(diagnosis_document(None, found), if_none_match=if_none_match)

    @routes.get(
        "/{diagnosis_id}/evidence",
        response_model=models.Page[models.EvidencePiece],
        responses=problems(404),
    )
    async def list_evidence(
        who: Reader, diagnosis_id: DiagnosisId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return the evidence of a diagnosis."""
        found = await context.store.diagnosis(diagnosis_id)
        page = whole(found.evidence)
        return answer(page.document(lambda one: one), if_none_match=if_none_match)

    @routes.get(
        "/{diagnosis_id}/evidence/{evidence_id}",
        response_model=models.EvidencePiece,
        responses=problems(404),
    )
    async def read_evidence(
        who: Reader,
        diagnosis_id: DiagnosisId,
        evidence_id: Annotated[str, Path(pattern=r"^E[0-9]{1,6}$")],
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return a piece of evidence, such as E3."""
        found = await context.store.diagnosis(diagnosis_id)
        for piece in found.evidence:
            if piece.id == evidence_id:
                return answer(piece, if_none_match=if_none_match)
        raise NotFound(f"diagnosis {diagnosis_id} has no evidence {evidence_id}")

    return routes
